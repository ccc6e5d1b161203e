"""A sample of vectors that depends on nothing but which vectors there were.

Revival needs vectors, which sums do not give. The sample is the S distinct rows of least hash: whatever the order, the
repetitions or the device that saw them, the same vectors give the same sample, and two samples merge into that of the
union. Over keys, which are the numbers of the steps, each vector is as likely to be drawn as any other.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_NO_ROW = np.uint32(0xFFFFFFFF)


def bits_of(rows_ND: Array) -> Array:
    """The bits of each row in words of 32, (N, words) uint32, of zeros the positive one: equal rows have equal bits."""
    if rows_ND.dtype == jnp.float64:
        positive_ND = jnp.where(rows_ND == 0, 0, rows_ND)
        return lax.bitcast_convert_type(positive_ND, jnp.uint32).reshape(len(rows_ND), 2 * rows_ND.shape[1])
    bits_ND = lax.bitcast_convert_type(rows_ND.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits_ND == np.uint32(0x80000000), np.uint32(0), bits_ND)


def hash_of(bits_NW: Array, key: Array) -> Array:
    """``mix(sum_w mix(bits_w + mix(key + w)))`` modulo 2^32.

    Two distinct rows in 2^32 share a hash: of such a pair one is passed over.
    """
    keys_W = _mix(key + jnp.arange(bits_NW.shape[1], dtype=jnp.uint32))
    return _mix(_mix(bits_NW + keys_W).sum(1, dtype=jnp.uint32))


def sample_rows(rows_ND: Array, counts_N: Array, key: Array, size: int) -> tuple[Array, Array]:
    """The ``size`` rows of least hash among the distinct ones that count, and their hashes, in order."""
    if not size:
        return rows_ND[:0], jnp.zeros(0, jnp.uint32)
    hashes_N = jnp.where(counts_N, hash_of(bits_of(rows_ND), _mix(key.astype(jnp.uint32))), _NO_ROW)
    return least_rows(rows_ND, hashes_N, size)


def least_rows(rows_ND: Array, hashes_N: Array, size: int) -> tuple[Array, Array]:
    """The ``size`` rows of least hash, equal hashes taken once; what is missing is zeros with the highest hash."""
    rows_ND = jnp.pad(rows_ND, ((0, size), (0, 0)))  # the last of these is the last in order, too
    hashes_N = jnp.pad(hashes_N, (0, size), constant_values=_NO_ROW)
    hashes_N, order_N = lax.sort((hashes_N, jnp.arange(len(hashes_N), dtype=jnp.int32)), num_keys=1)
    first_N = drawn(hashes_N) & jnp.append(True, hashes_N[1:] != hashes_N[:-1])
    chosen_S = jnp.sort(jnp.where(first_N, jnp.arange(len(first_N)), len(first_N) - 1))[:size]
    return rows_ND[order_N[chosen_S]], hashes_N[chosen_S]


def drawn(hashes_S: Array) -> Array:
    """Which places of a sample hold a row."""
    return hashes_S != _NO_ROW


def _mix(x: Array) -> Array:
    """The finalizer of MurmurHash3 (Appleby): every bit of the output depends on every bit of x."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
