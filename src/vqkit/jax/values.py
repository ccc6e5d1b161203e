"""What is checked before anything is computed. The names of arguments in messages are those of `quantize`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from vqkit.functional.estimators import Estimator


def check_vectors(z: Array, codes: Array) -> None:
    """Raises ValueError where shapes or dtypes do not fit."""
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"codes has shape {codes.shape}; it must be (codes, dim), each at least 1.")
    if z.ndim == 0 or z.shape[-1] != codes.shape[1]:
        raise ValueError(
            f"z has shape {z.shape}, but the codes have {codes.shape[1]} dimensions: the last axis of z must be that "
            "long (move a channel axis to the end with jnp.moveaxis(z, 1, -1))."
        )
    for name, array in (("z", z), ("codes", codes)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {array.dtype}; it must be floating: convert it with {name}.astype(jnp.float32)."
            )


def check_call(z: Array, codes: Array, mask: Array, estimator: Estimator, commitment: float, sample: int) -> None:
    """Raises ValueError for arguments of `quantize` that do not fit."""
    check_vectors(z, codes)
    if mask.shape != z.shape[:-1] or mask.dtype != bool:
        raise ValueError(
            f"mask has shape {mask.shape} and dtype {mask.dtype}; for z of shape {z.shape} it must be {z.shape[:-1]} "
            "and bool, True where a vector counts."
        )
    if isinstance(estimator, type) or not hasattr(estimator, "pull_back"):
        raise ValueError(f"estimator is {estimator!r}; it must be an object such as StraightThrough().")
    if known(jnp.logical_not((commitment >= 0) & (commitment < float("inf")))):
        raise ValueError(f"commitment is {commitment}; it must be finite and not negative, for example 0.25.")
    if sample < 0:
        raise ValueError(f"sample is {sample}; it must be 0 or more, as revival.vectors(codebook_size).")


def refuse_faults(z: Array, codes: Array, mask: Array | bool = True) -> None:
    """Raises ValueError for NaN or infinity where values can be looked at, which under a trace they cannot."""
    z, codes = lax.stop_gradient((z, codes))
    faulty = (~jnp.isfinite(z).all(-1) & mask).reshape(-1)
    if known(faulty.any()):
        raise ValueError(
            f"z holds NaN or infinity in {int(faulty.sum())} of {faulty.size} vectors (the first is vector "
            f"{int(faulty.argmax())} of the flattened batch); every vector must be finite. Lower the learning rate, "
            "clip gradients, or mask such positions with mask=."
        )
    faulty = ~jnp.isfinite(codes).all(1)
    if known(faulty.any()):
        raise ValueError(
            f"codes holds NaN or infinity in row {int(faulty.argmax())}; every code must be finite: reload it."
        )


def known(condition: Array) -> bool:
    """Whether the condition is true; False where it is only traced."""
    return not isinstance(condition, jax.core.Tracer) and bool(condition)
