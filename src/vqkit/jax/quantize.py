"""One call of the quantizer: codes, indices, losses, and what the codebook learns from.

Suffixes: N vectors, K codes, D dimensions, S sampled vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vqkit.functional.estimators import Estimator, StraightThrough
from vqkit.jax.codebook import Codebook, codes_of
from vqkit.jax.estimators import estimate
from vqkit.jax.sampling import sample_rows
from vqkit.jax.search import search
from vqkit.jax.values import check_call, refuse_faults

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Losses(NamedTuple):
    """The losses of one call, each a scalar in float32 or wider.

    ``total`` is what to add to the objective: both terms where the codebook is an array that learns by its gradient,
    the commitment alone where it is a ``Codebook`` (the codebook term is then reported, and has no gradient).
    """

    codebook: Array
    commitment: Array
    total: Array


class Statistics(NamedTuple):
    """What a codebook learns from: a pytree of arrays, for ``update``.

    ``counts`` (K,), vectors that chose each code; ``sums`` (K, D) of their residuals ``z - e``; ``faulty``, how many
    vectors were not finite, which count nowhere else; ``sample`` (S, D), the distinct vectors of least hash, and their
    ``hashes`` (S,).
    """

    counts: Array
    sums: Array
    faulty: Array
    sample: Array
    hashes: Array


class Quantized(NamedTuple):
    """``z_q`` (..., dim) in z's dtype, int32 ``indices`` (...), the ``losses``, and the ``statistics``."""

    z_q: Array
    indices: Array
    losses: Losses
    statistics: Statistics

    @property
    def loss(self) -> Array:
        """``losses.total``."""
        return self.losses.total


def quantize(
    codebook: Codebook | Float[Array, "codes dim"],
    z: Float[Array, "... dim"],
    *,
    mask: Bool[Array, "..."] | None = None,
    estimator: Estimator = StraightThrough(),
    commitment: float = 0.25,
    sample: int = 0,
) -> Quantized:
    """``z_q(x) = e_k``, ``k = argmin_j |z_e(x) - e_j|^2`` (van den Oord et al. 2017, eq. 1 and 2), and what follows.

    ``losses.codebook = 1/(N D) sum (sg[z_e] - e)^2`` and ``losses.commitment = commitment/(N D) sum (z_e - sg[e])^2``
    (eq. 3) over the N unmasked vectors. The gradient of z_q reaches z by the estimator, and the codebook never.

    Args:
        codebook: a ``Codebook``, which learns by ``update`` or not at all, or an array of codes (K, D), which learns
            by its gradient as every other parameter.
        z: vectors, any floating dtype, any leading axes.
        mask: True where a vector counts; elsewhere the index is -1, value and gradient zero.
        estimator: what gradient z gets from z_q: ``StraightThrough()`` or ``RotationTrick()``.
        commitment: beta, the weight of the commitment loss.
        sample: how many vectors to sample for revival, ``revival.vectors(codebook_size)``. They are drawn anew in every
            step of a ``Codebook``; an array knows no steps, and of equal batches it draws the same.

    Raises:
        ValueError: an argument that does not fit; outside of a trace also NaN or infinity in an unmasked vector. Under
            a trace (``jit``) such a vector has index 0 and NaN values, and ``statistics.faulty`` counts it.

    >>> codes = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    >>> z_q, indices, losses, statistics = quantize(codes, jnp.array([[0.9, 0.8], [0.5, 0.5]]))
    >>> indices.tolist(), round(float(losses.codebook), 6), statistics.counts.tolist()
    ([1, 0], 0.1375, [1.0, 1.0])
    """
    z, codes_KD = jnp.asarray(z), codes_of(codebook)
    mask = jnp.ones(z.shape[:-1], bool) if mask is None else jnp.asarray(mask)
    check_call(z, codes_KD, mask, estimator, commitment, sample)
    refuse_faults(z, codes_KD, mask)
    learns, steps = True, jnp.int32(0)
    if isinstance(codebook, Codebook):
        learns, steps, codes_KD = False, codebook.steps, lax.stop_gradient(codes_KD)
    wide = jnp.promote_types(jnp.promote_types(z.dtype, codes_KD.dtype), jnp.float32)
    mask_N = mask.reshape(-1)
    z_ND = jnp.where(mask_N[:, None], z.reshape(-1, z.shape[-1]), 0)  # a padded position may hold anything, NaN too

    indices_N = search(*lax.stop_gradient((z_ND, codes_KD)))
    counts_N = mask_N & jnp.isfinite(lax.stop_gradient(z_ND)).all(1)
    # Widened before rows are taken, because the gradient of taking adds up: in bfloat16 sums of 256 equal terms stall.
    e_ND = codes_KD.astype(wide).at[indices_N].get(mode="clip")
    e_ND = jnp.where(counts_N[:, None], e_ND, jnp.where(mask_N, jnp.nan, 0)[:, None])
    z_q = estimate(estimator, z_ND, lax.stop_gradient(e_ND).astype(z.dtype))

    x_ND = z_ND.astype(wide)
    size = jnp.maximum(mask_N.sum(dtype=wide) * z.shape[-1], 1)
    codebook_loss = jnp.sum((lax.stop_gradient(x_ND) - e_ND) ** 2) / size
    commitment_loss = commitment * (jnp.sum((x_ND - lax.stop_gradient(e_ND)) ** 2) / size)
    total = codebook_loss + commitment_loss if learns else commitment_loss

    x_ND, e_ND = lax.stop_gradient((x_ND, e_ND))
    statistics = Statistics(
        jnp.zeros(len(codes_KD), wide).at[indices_N].add(counts_N.astype(wide), mode="drop"),
        jnp.zeros(codes_KD.shape, wide).at[indices_N].add(jnp.where(counts_N[:, None], x_ND - e_ND, 0), mode="drop"),
        jnp.sum(mask_N & ~counts_N, dtype=jnp.int32),
        *sample_rows(x_ND, counts_N, steps, sample),
    )
    indices = jnp.where(mask_N, indices_N, -1).reshape(mask.shape)
    return Quantized(z_q.reshape(z.shape), indices, Losses(codebook_loss, commitment_loss, total), statistics)
