"""A codebook: its state, how it starts, and the way from indices back to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vqkit.codebooks import DataFreeStart, Uniform
from vqkit.jax.values import known

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Codebook(NamedTuple):
    """A pytree of arrays; ``update`` gives the next one.

    ``codes`` (K, D); ``n`` (K,), under EMA the average vectors per step of each code; ``usage`` (K,), counts that decay
    by 0.99 a step; ``idle`` (K,) int32, vectors since a code was chosen; ``steps``, int32.
    """

    codes: Array
    n: Array
    usage: Array
    idle: Array
    steps: Array


def init(key: Array, *, codebook_size: int, dim: int, start: DataFreeStart = Uniform()) -> Codebook:
    """A codebook before its first step, float32 (a ``Given`` float64 array stays so where ``jax_enable_x64`` is on).

    Args:
        key: of what is drawn at random, ``jax.random.key(seed)``.
        codebook_size: number of codes, K.
        dim: length of a vector, D.
        start: where the codes begin: ``Uniform()``, ``Normal()`` or ``Given(array)``.

    Raises:
        ValueError: a size below 1, a start whose codes do not fit, or one that needs data.

    >>> codebook = init(jax.random.key(0), codebook_size=16, dim=4)
    >>> codebook.codes.shape, int(codebook.steps)
    ((16, 4), 0)
    """
    for name, size in (("codebook_size", codebook_size), ("dim", dim)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1.")
    if isinstance(start, type) or not hasattr(start, "codebook"):
        what = start if hasattr(start, "from_vectors") else type(start).__name__
        raise ValueError(
            f"start is {what}; vqkit.jax starts from Uniform(), Normal() or Given(array). For k-means cluster "
            "encoder outputs, centres = sklearn.cluster.KMeans(codebook_size).fit(z).cluster_centers_, then Given."
        )
    codes, n = map(jnp.asarray, start.codebook(codebook_size, dim, _Random(key)))
    n = jnp.broadcast_to(n.astype(codes.dtype), codebook_size)
    return Codebook(codes, n, jnp.zeros_like(n), jnp.zeros_like(n, jnp.int32), jnp.zeros((), jnp.int32))


def look_up(codebook: Codebook | Float[Array, "codes dim"], indices: Int[Array, "..."]) -> Float[Array, "... dim"]:
    """``z_q = e_k`` (van den Oord et al. 2017, eq. 2); -1 (padding) gives zeros. Differentiable in the codes.

    Raises:
        ValueError: indices that are no integers; outside of a trace also one that is not in -1..K-1, which under a
            trace gives NaN.

    >>> look_up(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, -1])).tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    """
    codes, indices = codes_of(codebook), jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices has dtype {indices.dtype}; codes are named by integers: pass indices.astype(int).")
    indices = indices.astype(int)  # -1 and K are no uint8
    outside = (indices < -1) | (indices >= len(codes))
    if known(outside.any()):
        raise ValueError(
            f"indices holds {indices.reshape(-1)[outside.argmax()]}, but this codebook has {len(codes)} codes: each "
            f"index must be in 0..{len(codes) - 1}, or -1 for padding."
        )
    rows = codes.at[jnp.where(outside, len(codes), jnp.maximum(indices, 0))].get(mode="fill", fill_value=jnp.nan)
    return jnp.where((indices == -1)[..., None], 0, rows)


def codes_of(codebook: Codebook | Array) -> Array:
    return codebook.codes if isinstance(codebook, Codebook) else jnp.asarray(codebook)


class _Random:
    """What a start draws from, in NumPy's words."""

    def __init__(self, key: Array) -> None:
        self.key = key

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        self.key, key = jax.random.split(self.key)
        return jax.random.normal(key, shape, jnp.float32)

    def random(self, shape: tuple[int, ...]) -> Array:
        self.key, key = jax.random.split(self.key)
        return jax.random.uniform(key, shape, jnp.float32)
