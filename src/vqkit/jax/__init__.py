"""The vector quantizer for JAX: pure functions and plain pytrees, no neural-network library.

codebook = vqkit.jax.init(key, codebook_size=512, dim=64)
z_q, indices, losses, statistics = vqkit.jax.quantize(codebook, z)
codebook = vqkit.jax.update(codebook, statistics)
"""

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("vqkit.jax needs jax: pip install 'vqkit[jax]'") from error

from vqkit.jax.codebook import Codebook, init, look_up
from vqkit.jax.estimators import straight_through_custom_vjp, straight_through_stop_gradient
from vqkit.jax.learning import merge, update
from vqkit.jax.quantize import Losses, Quantized, Statistics, quantize
from vqkit.jax.search import nearest_codes

__all__ = [
    "Codebook",
    "Losses",
    "Quantized",
    "Statistics",
    "init",
    "look_up",
    "merge",
    "nearest_codes",
    "quantize",
    "straight_through_custom_vjp",
    "straight_through_stop_gradient",
    "update",
]
