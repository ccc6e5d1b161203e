"""Both ways in which people write the straight-through estimator, and how any estimator's gradient is put in place.

>>> import keras
>>> z, z_q = keras.ops.array([[0.2, 0.9]]), keras.ops.array([[0.0, 1.0]])
>>> [float(x) for x in straight_through_custom_gradient(z, z_q)[0]]
[0.0, 1.0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from vqkit.functional.estimators import StraightThrough

if TYPE_CHECKING:
    from vqkit.functional.estimators import Estimator


def straight_through_stop_gradient(z: Any, z_q: Any) -> Any:
    """``sg[z_q] + (z - sg[z])``: the value is z_q's to the bit (z - z is 0), the gradient goes to z as it comes.

    The usual ``z + sg[z_q - z]`` has the same gradient and rounds: in float32 about a third of its values are no codes.
    """
    return ops.stop_gradient(z_q) + (z - ops.stop_gradient(z))


def straight_through_custom_gradient(z: Any, z_q: Any) -> Any:
    """The same with ``keras.ops.custom_gradient``, which on TensorFlow is ``tf.custom_gradient``."""
    return with_gradient_of(StraightThrough(), z, z_q)


def with_gradient_of(estimator: Estimator, z: Any, z_q: Any) -> Any:
    """``z_q``, with ``estimator.pull_back`` for its derivative by z, computed in float32 or float64; none by z_q."""

    @ops.custom_gradient
    def forward(z: Any, z_q: Any) -> Any:
        def gradient(*args: Any, upstream: Any = None) -> Any:
            g = args[0] if upstream is None else upstream  # PyTorch's backend hands (z, z_q) over as well
            wide = "float64" if keras.backend.standardize_dtype(z.dtype) == "float64" else "float32"
            pulled = estimator.pull_back(ops.cast(g, wide), ops.cast(z, wide), ops.cast(z_q, wide), ops)
            return ops.cast(pulled, z.dtype), ops.zeros_like(z_q)

        return z_q, gradient

    return forward(z, ops.stop_gradient(z_q))
