"""The rows that dead codes move onto.

Suffixes: N vectors, K codes, D dimensions, S sampled vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from vqkit.keras.backends import backend

if TYPE_CHECKING:
    from vqkit.codebooks import Revival

_LAST = 2**31 - 1  # the hash of a row that is not to be drawn


def draw(rows_ND: Any, allowed_N: Any, size: int, steps: Any) -> Any:
    """``size`` distinct rows of those allowed, at random, padded with rows of NaN.

    They are those with the least hash of (bytes of the row, steps), so that neither order nor split of a batch matters,
    and drawing from the drawn rows of all replicas is drawing from the whole batch.
    """
    nothing_1D = ops.full((1, rows_ND.shape[1]), float("nan"), rows_ND.dtype)  # so that an empty batch has a row
    rows_ND = ops.concatenate([rows_ND, nothing_1D])
    hashes_N = ops.where(ops.concatenate([allowed_N, ops.zeros((1,), "bool")]), _hash(rows_ND, steps), _LAST)
    order_N = ops.argsort(hashes_N)
    hashes_N = ops.take(hashes_N, order_N)
    new_N = ops.concatenate([ops.ones((1,), "bool"), hashes_N[1:] != hashes_N[:-1]]) & (hashes_N != _LAST)
    rank_N = ops.cumsum(ops.cast(new_N, "int32"))
    wanted_S = ops.arange(1, size + 1, dtype="int32")
    place_S = ops.minimum(ops.searchsorted(rank_N, wanted_S), ops.shape(rank_N)[0] - 1)
    drawn_SD = ops.take(rows_ND, ops.take(order_N, place_S), axis=0)
    return ops.where((wanted_S <= rank_N[-1])[:, None], drawn_SD, float("nan"))


def revive(revival: Revival, codebook_KD: Any, n_K: Any, idle_K: Any, drawn_SD: Any) -> tuple[Any, Any, Any]:
    """Dead codes, the longest idle first, move onto the drawn rows, with n = 0 and idle = 0."""
    dead_K = revival.dead(ops.cast(idle_K, "float32"))  # TensorFlow compares no integer with a float
    age_K = ops.where(dead_K, idle_K, -1)
    code_S = ops.argsort(-age_K)[: drawn_SD.shape[0]]
    moves_S = (ops.take(age_K, code_S) >= 0) & ops.all(ops.isfinite(drawn_SD), -1)
    rows_SD = ops.where(moves_S[:, None], drawn_SD, ops.take(codebook_KD, code_S, axis=0))
    moved_K = ops.scatter(code_S[:, None], ops.cast(moves_S, "int32"), n_K.shape) > 0
    codebook_KD = ops.scatter_update(codebook_KD, code_S[:, None], rows_SD)
    return codebook_KD, ops.where(moved_K, 0, n_K), ops.where(moved_K, 0, idle_K)


def _hash(rows_ND: Any, steps: Any) -> Any:
    """``mix(sum_d a_d bits_d + steps c)`` modulo 2^31, with odd a_d (multilinear hashing)."""
    drawn = np.random.default_rng(0).integers(-(2**31), 2**31, rows_ND.shape[1])
    odd_D = ops.convert_to_tensor((drawn | 1).astype("int32"))
    bits_ND = backend.bits(ops.cast(rows_ND, "float32") + 0.0)  # -0.0 becomes 0.0: equal rows have equal bytes
    summed_N = ops.cast(ops.sum(bits_ND * odd_D, 1), "int32")
    mixed_N = _mix(summed_N + ops.cast(steps, "int32") * -1640531527)
    return ops.bitwise_and(mixed_N, _LAST)


def _mix(x: Any) -> Any:
    """The finalizer of MurmurHash3: every bit of the output depends on every bit of x."""
    x = ops.bitwise_xor(x, ops.bitwise_and(ops.right_shift(x, 16), 0xFFFF)) * -2048144789
    x = ops.bitwise_xor(x, ops.bitwise_and(ops.right_shift(x, 13), 0x7FFFF)) * -1028477387
    return ops.bitwise_xor(x, ops.bitwise_and(ops.right_shift(x, 16), 0xFFFF))
