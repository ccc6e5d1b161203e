"""Where gradients go, measured on real backward passes: trace (a model), audit (any quantizer), explain (a page)."""
