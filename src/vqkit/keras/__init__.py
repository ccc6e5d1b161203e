"""The quantizer in Keras 3, on its TensorFlow, JAX and PyTorch backends; PyTorch is imported on that backend alone.

>>> import keras, vqkit, vqkit.keras
>>> layer = vqkit.keras.VectorQuantizer(codebook_size=16, update=vqkit.EMA(decay=0.99))
>>> layer(keras.random.normal((2, 5, 5, 4))).shape
TensorShape([2, 5, 5, 4])
"""

from __future__ import annotations

try:
    import keras as _keras  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"vqkit.keras needs {error.name}: pip install 'vqkit[tensorflow]', or 'vqkit[keras]' beside a backend of Keras "
        "that is there already (KERAS_BACKEND=jax or torch names it)."
    ) from error

from vqkit.keras.convert import convert
from vqkit.keras.estimators import straight_through_custom_gradient, straight_through_stop_gradient
from vqkit.keras.layer import Losses, Quantized, VectorQuantizer
from vqkit.keras.trace import trace
from vqkit.keras.vqvae import VQVAE

__all__ = [
    "VQVAE",
    "Losses",
    "Quantized",
    "VectorQuantizer",
    "convert",
    "straight_through_custom_gradient",
    "straight_through_stop_gradient",
    "trace",
]
