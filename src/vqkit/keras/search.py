"""The nearest code of every vector in TensorFlow, exactly: in eager mode, in graphs of any batch size, and under XLA.

Suffixes give shapes: N vectors, K codes, D dimensions, M rows of a block.

As ``vqkit.functional.search`` does it: a float32 score with a bound on its rounding settles nearly every row, a
float64 score nearly all of the rest, and the definition what remains. Here every shape is static, as XLA wants it:
rows in doubt are taken M at a time until none is left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

_CHUNK = 2**20  # scores held at a time: 4 MiB of float32
_BLOCK, _HARD_BLOCK = 256, 32  # rows that float64 scores, or the definition, look at together


def search(z_ND: tf.Tensor, codebook_KD: tf.Tensor) -> tf.Tensor:
    """``argmin_k sum_d (z_d - e_kd)^2`` as in float64, summed in order of d; of equal sums the lowest index: (N,).

    A vector that is not finite gets some valid index.
    """
    if z_ND.shape[0] == 0:
        return tf.zeros([0], tf.int32)
    if tf.float64 in (z_ND.dtype, codebook_KD.dtype) or not _products_are_float32():
        z_ND, codebook_KD = _as_float64(z_ND), _as_float64(codebook_KD)
    return _search(z_ND, codebook_KD, *codebook_KD.shape)


@tf.function(autograph=False, reduce_retracing=True)  # for eager mode; inside another function it is inlined
def _search(z_ND: tf.Tensor, codebook_KD: tf.Tensor, codes: int, dim: int) -> tf.Tensor:
    z_ND, codebook_KD = tf.ensure_shape(z_ND, [None, dim]), tf.ensure_shape(codebook_KD, [codes, dim])
    finite_N = tf.reduce_all(tf.math.is_finite(z_ND), 1)
    exact_KD = _as_float64(codebook_KD)
    indices_N, settled_N = _in_chunks(_scored_against(codebook_KD), z_ND, codes)
    doubtful_N = tf.logical_not(settled_N) & finite_N
    if z_ND.dtype == tf.float32:
        indices_N, doubtful_N = _settle(_scored_against(exact_KD), z_ND, indices_N, doubtful_N, _BLOCK)
    return _settle(_defined_for(exact_KD), z_ND, indices_N, doubtful_N, _HARD_BLOCK)[0]


def _scored_against(codebook_KD: tf.Tensor) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Of rows, the code of the best score ``x.e - |e|^2/2``, and whether it beats all others beyond rounding.

    Both sides are moved by the codebook's mean, so that data far from the origin lose nothing. With ``u`` the unit
    roundoff and E the longest code, a score errs by less than ``(D + 8) u (|x| E + E^2)`` (Cauchy-Schwarz), and the
    definition by ``(D + 8) u64 (|x| + E)^2``; each is taken four times, for two codes and a margin. The last term
    covers what underflows. A row with NaN or an overflow stays in doubt.
    """
    codes, dtype = codebook_KD.shape[0], codebook_KD.dtype
    dims = codebook_KD.shape[1] + 8
    eps, tiny = (2.0**-23, 2.0**-126) if dtype == tf.float32 else (2.0**-52, 2.0**-1022)
    eps64 = 2.0**-52
    centre_D = tf.reduce_mean(codebook_KD, 0)
    e_KD = codebook_KD - centre_D
    half_K = tf.reduce_sum(e_KD * e_KD, 1) / 2
    longest = tf.sqrt(2 * tf.reduce_max(half_K))
    # Else a codebook of equal codes would tie on every row, and the definition takes a hundred times as long.
    half_K = tf.where(_repeated(codebook_KD, half_K), tf.cast(np.inf, dtype), half_K)
    column_K2 = tf.stack([tf.range(codes, dtype=dtype), tf.ones(codes, dtype)], 1)

    def score(z_RD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x_RD = (z_RD if z_RD.dtype == dtype else _as_float64(z_RD)) - centre_D
        scores_RK = tf.matmul(x_RD, e_KD, transpose_b=True) - half_K
        reach_R = tf.sqrt(tf.reduce_sum(x_RD * x_RD, 1)) + longest
        bound_R = (reach_R * (2 * dims * eps64) + longest * (2 * dims * eps)) * reach_R + 4 * dims * tiny
        # 1 where a code may be the nearest, else 0. Of a single 1 the place is a product away: argmax is slower.
        near_RK = tf.cast(scores_RK > (tf.reduce_max(scores_RK, 1) - bound_R)[:, None], dtype)
        place_and_count_R2 = tf.matmul(near_RK, column_K2)
        settled_R = (place_and_count_R2[:, 1] == 1) & tf.math.is_finite(bound_R)
        return tf.cast(tf.where(settled_R, place_and_count_R2[:, 0], 0), tf.int32), settled_R

    return score


def _repeated(codebook_KD: tf.Tensor, key_K: tf.Tensor) -> tf.Tensor:
    """True for a code with the bits and the key of one of lower index, in whose place it is never chosen.

    Codes are compared to the first that has their key, so different codes with one key hide repetitions, and no more.
    """
    codes = codebook_KD.shape[0]
    order_K = tf.argsort(key_K)
    sorted_K = tf.gather(key_K, order_K)
    run_K = tf.cumsum(tf.cast(tf.concat([[False], sorted_K[1:] != sorted_K[:-1]], 0), tf.int32))
    first_K = tf.gather(tf.math.unsorted_segment_min(order_K, run_K, codes), run_K)
    bits_KD = tf.bitcast(codebook_KD, tf.int32 if codebook_KD.dtype == tf.float32 else tf.int64)
    same_K = tf.reduce_all(tf.equal(tf.gather(bits_KD, order_K), tf.gather(bits_KD, first_K)), 1)
    return tf.tensor_scatter_nd_update(tf.zeros([codes], tf.bool), order_K[:, None], same_K & (first_K < order_K))


def _defined_for(codebook_KD: tf.Tensor) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Of rows, the code of the least ``sum_d (z_d - e_d)^2``, lowest index first. This settles every row."""
    codes, dims = codebook_KD.shape
    codebook_DK = tf.transpose(codebook_KD)

    def decide(z_MD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        z_DM = tf.transpose(_as_float64(z_MD))
        nothing_MK = tf.zeros([z_DM.shape[1], codes], tf.float64)

        def add(d: tf.Tensor, total_MK: tf.Tensor, square_MK: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            # The square made in one turn is added in the next: XLA would contract `total + square` into one rounding.
            difference_MK = z_DM[d][:, None] - codebook_DK[d]
            return d + 1, total_MK + square_MK, difference_MK * difference_MK

        _, total_MK, square_MK = tf.while_loop(
            lambda d, *_: d < dims, add, (0, nothing_MK, nothing_MK), maximum_iterations=dims
        )
        total_MK = total_MK + square_MK
        least_M1 = tf.reduce_min(total_MK, 1, keepdims=True)
        found_M = tf.reduce_min(tf.where(total_MK == least_M1, tf.range(codes), codes - 1), 1)
        return found_M, tf.ones_like(found_M, tf.bool)

    return decide


def _in_chunks(score: Callable, z_ND: tf.Tensor, codes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """``score`` of all rows, a bounded number of them at a time."""
    number = tf.shape(z_ND)[0]
    rows = tf.clip_by_value(number, 1, max(1, _CHUNK // codes))
    chunks = tf.maximum((number + rows - 1) // rows, 1)  # a loop that never runs knows no shape
    padded_ND = tf.pad(z_ND, [[0, chunks * rows - number], [0, 0]])
    blocks = tf.reshape(padded_ND, [chunks, rows, z_ND.shape[1]])
    found, settled = tf.map_fn(score, blocks, fn_output_signature=(tf.int32, tf.bool))
    return tf.reshape(found, [-1])[:number], tf.reshape(settled, [-1])[:number]


def _settle(
    decide: Callable, z_ND: tf.Tensor, indices_N: tf.Tensor, doubtful_N: tf.Tensor, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """``decide`` of the doubtful rows, ``size`` at a time; the indices, and the rows that are in doubt still."""
    number = tf.shape(z_ND)[0]
    range_N = tf.range(number)  # out here XLA knows its length

    def turn(waiting_N: tf.Tensor, indices_N1: tf.Tensor, doubtful_N1: tf.Tensor) -> tuple[tf.Tensor, ...]:
        order_N = tf.cumsum(tf.cast(waiting_N, tf.int32))
        place_N = tf.where(waiting_N & (order_N <= size), order_N - 1, size)
        first_M = tf.math.unsorted_segment_min(range_N, place_N, size + 1)[:size]
        row_M = tf.minimum(first_M, number)  # N, the place of no row, where fewer than M wait
        found_M, settled_M = decide(tf.gather(z_ND, tf.minimum(row_M, number - 1)))
        indices_N1 = tf.tensor_scatter_nd_update(indices_N1, row_M[:, None], found_M)
        doubtful_N1 = tf.tensor_scatter_nd_update(doubtful_N1, row_M[:, None], tf.logical_not(settled_M))
        return waiting_N & (order_N > size), indices_N1, doubtful_N1

    state = doubtful_N, tf.pad(indices_N, [[0, 1]]), tf.pad(doubtful_N, [[0, 1]])
    _, indices_N1, doubtful_N1 = tf.while_loop(lambda waiting_N, *_: tf.reduce_any(waiting_N), turn, state)
    return indices_N1[:number], doubtful_N1[:number]


def _as_float64(x: tf.Tensor) -> tf.Tensor:
    """Exactly: TensorFlow's arithmetic takes float32 numbers below 2^-126 for zero, so those are read bit by bit."""
    if x.dtype == tf.float64:
        return x
    bits = tf.bitcast(x, tf.int32)
    tiny = tf.cast(tf.bitwise.bitwise_and(bits, 0x007FFFFF), tf.float64) * 2.0**-149
    is_tiny = tf.equal(tf.bitwise.bitwise_and(bits, 0x7F800000), 0)
    return tf.where(is_tiny, tf.where(bits < 0, -tiny, tiny), tf.cast(x, tf.float64))


def _products_are_float32() -> bool:
    """False where TensorFlow may compute a float32 product in TF32, as it does on recent GPUs unless told not to."""
    return not (tf.config.list_physical_devices("GPU") and tf.config.experimental.tensor_float_32_execution_enabled())
