"""The nearest code of every vector, exactly, in memory that does not grow with N x K.

Suffixes give shapes: N vectors, R of them in one piece, K codes, D dimensions.

As in PyTorch (`vqkit.functional.search`): the float32 score ``x.e - |e|^2/2`` orders codes as the distance does up to a
rounding error that has a bound, and both sides are first moved by the codebook's mean. Rows whose best code is not
beyond doubt are scored again in float64, and those that even float64 cannot part are decided by the definition.
float64 works inside a traced function also where `jax_enable_x64` is off, as long as JAX never batches it: hence the
rule below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

from vqkit.jax.sampling import bits_of, hash_of
from vqkit.jax.values import check_vectors, refuse_faults

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Decide = Callable[[Array], tuple[Array, Array]]  # rows (R, D) -> the index of each, and whether it is in doubt

# Scores held at a time: 2^19 float32 are 2 MiB, which a CPU's cache holds; a GPU wants larger pieces.
_CHUNK_CPU, _CHUNK_ACCELERATOR = 2**19, 2**24
_BLOCK = 2**15  # scores of doubtful rows held at a time, in float64


def nearest_codes(z: Float[Array, "... dim"], codes: Float[Array, "codes dim"]) -> Int[Array, "..."]:
    """The index of the nearest row of ``codes`` for each vector of ``z``.

    ``k(x) = argmin_k sum_d (z_d - e_kd)^2`` (van den Oord et al. 2017, eq. 1), decided as in float64 with the sum
    taken in order of d; of equal sums the lowest index. It has no derivative.

    Args:
        z: vectors, any floating dtype.
        codes: any floating dtype, at least one row.

    Returns:
        int32 indices of shape ``z.shape[:-1]``. Under a trace (``jit``, ``vmap``) a vector that holds NaN or infinity
        gets index 0.

    Raises:
        ValueError: shapes or dtypes that do not fit; outside of a trace also NaN or infinity.

    >>> nearest_codes(jnp.array([[0.9, 0.8], [0.5, 0.5]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])).tolist()
    [1, 0]
    """
    z, codes = lax.stop_gradient((jnp.asarray(z), jnp.asarray(codes)))
    check_vectors(z, codes)
    refuse_faults(z, codes)
    return search(z.reshape(-1, z.shape[-1]), codes).reshape(z.shape[:-1])


@custom_vmap
def _search(z_ND: Array, codes_KD: Array) -> Array:
    if not len(z_ND):
        return jnp.zeros(0, jnp.int32)
    with jax.enable_x64(True):
        wide = jnp.promote_types(jnp.promote_types(z_ND.dtype, codes_KD.dtype), jnp.float32)
        z_ND, codes_KD = z_ND.astype(wide), codes_KD.astype(wide)
        narrow = wide != jnp.float64 and len(codes_KD) < 2**23  # what float32 can number
        tables = [codes_KD, _as_float64(codes_KD)] if narrow else [_as_float64(codes_KD)]
        doubtful_N = jnp.isfinite(z_ND).all(1)  # all that have a nearest code
        indices_N = jnp.zeros_like(doubtful_N, jnp.int32)
        scores = _CHUNK_CPU if jax.default_backend() == "cpu" else _CHUNK_ACCELERATOR
        passes: list[Decide] = [*map(partial(_scorer, _repeated(codes_KD)), tables), partial(_decide, tables[-1])]
        for decide in passes:
            indices_N, doubtful_N = _settle(decide, z_ND, indices_N, doubtful_N, max(1, scores // len(codes_KD)))
            scores = _BLOCK
        return indices_N


@_search.def_vmap
def _search_batches(size: int, batched: list[bool], z: Array, codes: Array) -> tuple[Array, bool]:
    """Batches of vectors are one longer list of them; batches of codebooks are searched one after the other."""
    if not batched[1]:
        return search(z.reshape(-1, z.shape[-1]), codes).reshape(z.shape[:-1]), True
    if not batched[0]:
        return lax.map(lambda codes_KD: search(z, codes_KD), codes), True
    return lax.map(lambda pair: search(*pair), (z, codes)), True


search = jax.jit(_search)  # `nearest_codes` of (N, D) and (K, D) that were checked already


def _settle(
    decide: Decide, z_ND: Array, indices_N: Array, doubtful_N: Array, each: int
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Decides the doubtful rows, ``each`` at a time, so that time and memory are those of the rows that there are."""
    rows = len(z_ND)
    each = -(-rows // -(-rows // each))  # pieces of one size
    # Sorted, because the sums of jnp.nonzero take a second to compile.
    place_N = jnp.where(doubtful_N, jnp.arange(rows, dtype=jnp.int32), rows)
    which = jnp.pad(jnp.sort(place_N, stable=False), (0, each), constant_values=rows)

    def block(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, indices_N, doubtful_N = state
        these = lax.dynamic_slice(which, (start,), (each,))
        found, doubtful = decide(z_ND.at[these].get(mode="clip"))
        indices_N = indices_N.at[these].set(found, mode="drop")
        return start + np.int32(each), indices_N, doubtful_N.at[these].set(doubtful, mode="drop")

    return lax.while_loop(lambda state: which[state[0]] < rows, block, (jnp.int32(0), indices_N, doubtful_N))[1:]


def _scorer(repeated_K: Array, codes_KD: Array) -> Decide:
    """Decides by scores in the dtype of the codes.

    With ``u`` the unit roundoff and E the longest code, product, norm and difference together err by less than
    ``(D + 8) u (|x| E + E^2)`` (Cauchy-Schwarz), and the definition by ``(D + 8) u64 (|x| + E)^2``; each is taken
    four times, for two codes and a margin. The last term covers what underflows, and what XLA flushes to zero.
    """
    (codes, dim), dtype = codes_KD.shape, codes_KD.dtype
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    dims = dim + 8
    centre_D = codes_KD.mean(0)
    e_KD = codes_KD - centre_D
    squares_K = jnp.sum(e_KD * e_KD, 1)
    longest = jnp.sqrt(squares_K.max())
    longest = jnp.where(jnp.isfinite(longest), longest, jnp.nan)  # where a square overflowed, every row is in doubt
    half_K = jnp.where(repeated_K, jnp.inf, squares_K / 2)  # a codebook of equal codes would tie on every row
    # Of the codes k that may be the nearest the numbers K + k are added: of one code the sum is that number, exactly,
    # of more it is 2 K or above, and 0 where something overflowed. It is one pass, where the lowest and
    # the highest such k take two (a third of the whole step), and XLA's argmax, which does not vectorize, takes longer.
    number_K = codes + jnp.arange(codes, dtype=dtype)

    def decide(z_RD: Array) -> tuple[Array, Array]:
        x_RD = (z_RD if dtype == z_RD.dtype else _as_float64(z_RD)) - centre_D
        scores_RK = jnp.dot(x_RD, e_KD.T, precision=lax.Precision.HIGHEST) - half_K
        reach_R = jnp.sqrt(jnp.sum(x_RD * x_RD, 1)) + longest
        bound_R = (reach_R * (2 * dims * 2.0**-52) + longest * (2 * dims * eps)) * reach_R
        limit_R = scores_RK.max(1) - bound_R - 4 * dims * tiny
        sum_R = jnp.where(scores_RK > limit_R[:, None], number_K, 0).sum(1)
        return sum_R.astype(jnp.int32) - codes, (sum_R < codes) | (sum_R >= 2 * codes)

    return decide


def _decide(codes_KD: Array, z_RD: Array) -> tuple[Array, Array]:
    """The definition: the lowest index of the least sum."""
    codes, dim = codes_KD.shape
    z_DR, codes_DK = _as_float64(z_RD).T, codes_KD.T

    def add(d: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        # Each square is added in the round after its own, where no compiler contracts the two into one rounding.
        total_RK, square_RK = sums
        difference_RK = z_DR[d][:, None] - codes_DK[d]
        return total_RK + square_RK, difference_RK * difference_RK

    first_RK = (z_DR[0][:, None] - codes_DK[0]) ** 2
    start = jnp.minimum(first_RK, 0), first_RK  # zeros that vary over devices as the sums will
    total_RK, square_RK = lax.fori_loop(np.int32(1), np.int32(dim), add, start)
    total_RK = total_RK + square_RK
    least_RK = total_RK == total_RK.min(1, keepdims=True)
    index_R = jnp.where(least_RK, jnp.arange(codes, dtype=jnp.int32), codes - 1).min(1)
    return index_R, jnp.zeros(len(z_RD), bool)


def _repeated(codes_KD: Array) -> Bool[Array, " codes"]:
    """True for a code that equals one of lower index: it is never chosen."""
    bits_KD = bits_of(codes_KD)
    order_K = jnp.argsort(hash_of(bits_KD, jnp.uint32(0)), stable=True)
    before_K = jnp.roll(order_K, 1)
    same_K = (before_K < order_K) & (bits_KD[before_K] == bits_KD[order_K]).all(1)
    return jnp.zeros(len(order_K), bool).at[order_K].set(same_K)


def _as_float64(x: Array) -> Array:
    """Exactly: XLA on a CPU reads a subnormal float32 as zero, so these are converted from their bits."""
    if x.dtype == jnp.float64:
        return x
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    subnormal = magnitude.astype(jnp.float64) * 2.0**-149
    subnormal = jnp.where(bits == magnitude, subnormal, -subnormal)
    return jnp.where(magnitude < np.uint32(0x00800000), subnormal, x.astype(jnp.float64))
