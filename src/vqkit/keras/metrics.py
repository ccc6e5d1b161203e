"""Perplexity and usage of a codebook over an epoch: counts are summed, and the figure is of all that was counted."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import get_stateless_scope

from vqkit.keras.backends import backend


class Tally:
    """Counts of codes, the number of vectors and the sum of their codebook losses, since the last reset.

    The variable is state of the layer, not of a metric: on the JAX backend what a layer's ``call`` writes into the
    variable of a metric is lost. Under ``tf.distribute`` each replica has its own, and reading adds them.
    """

    def __init__(self, codes: int) -> None:
        holder = keras.metrics.Metric(dtype="float32", name="tally")
        self.variable = holder.add_variable((codes + 2,), "zeros", name="tally")

    def add(self, counts: Any, loss: Any) -> None:
        vectors = ops.sum(counts)
        added = ops.concatenate([counts, ops.stack([vectors, ops.where(vectors > 0, loss, 0) * vectors])])
        self.variable.assign_add(ops.cast(added, "float32"))

    def read(self) -> tuple[Any, Any, Any]:
        """Counts, vectors, sum of losses: NaN in a step of the JAX trainer, where only a metric's own state is seen.

        When the epoch is over the trainer computes the figures anew, and those are right.
        """
        scope = get_stateless_scope()
        hidden = scope is not None and scope.get_current_value(self.variable) is None
        values = ops.full(self.variable.shape, float("nan")) if hidden else backend.read(self.variable)
        return values[:-2], values[-2], values[-1]


class OfTally(keras.metrics.Metric):
    """A metric that reads the layer's tally; the layer writes it, in ``call``."""

    def __init__(self, tally: Tally, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.tally = tally

    def reset_state(self) -> None:
        self.tally.variable.assign(ops.zeros(self.tally.variable.shape))


class Perplexity(OfTally):
    """``exp(-sum_k p_k log p_k)``, from 1 to K; 0 before anything was counted."""

    def result(self) -> Any:
        counts, vectors, _ = self.tally.read()
        p = counts / ops.where(vectors > 0, vectors, 1.0)
        entropy = -ops.sum(p * ops.log(ops.where(p > 0, p, 1.0)))
        return ops.where(vectors == 0, 0.0, ops.exp(entropy))


class Usage(OfTally):
    """The share of codes that were chosen at least once, in [0, 1]."""

    def result(self) -> Any:
        counts, vectors, _ = self.tally.read()
        return ops.mean(ops.cast(counts > 0, "float32")) + vectors * 0  # NaN where that is hidden


class CodebookLoss(OfTally):
    """The mean of ``|z - e|^2 / D`` over the vectors, where it is not part of the objective."""

    def result(self) -> Any:
        _, vectors, loss = self.tally.read()
        return loss / ops.where(vectors == 0, 1.0, vectors)
