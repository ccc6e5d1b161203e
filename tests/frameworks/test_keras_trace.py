"""``vqkit.keras.trace`` on every backend of Keras: TensorFlow's measures, the others say what to do instead."""

from __future__ import annotations

import keras
import pytest

import vqkit.keras

SAID = {
    "tensorflow": r'^losses is \{\}; it must name at least one, as in \{"name": \.\.\.\}\.$',
    "torch": r"Keras runs on torch: use vqkit\.trace\(losses, model\), or set KERAS_BACKEND=tensorflow",
    "jax": r"Keras runs on jax: use the gradients of each loss by hand, or set KERAS_BACKEND=tensorflow",
}


def test_a_backend_without_a_tape_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match=SAID[keras.backend.backend()]):
        vqkit.keras.trace({}, {}, None)
