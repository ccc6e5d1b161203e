"""One autograd function: the codes, both losses, and in backward what the codebook learns from.

An EMA codebook learns once per optimizer step from sums over the batch, as a weight learns from ``.grad``. So its
statistics are made the gradient of a leaf: whatever fills a ``.grad`` (one backward pass, micro-batches added up,
recomputation under checkpointing once) fills them, and nothing else does.

Suffixes: N vectors, K codes, D dimensions, S sampled vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqkit.functional import native

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from vqkit.functional.estimators import Estimator


def quantize(
    z: Float[Tensor, "... dim"],
    codebook: Float[Tensor, "codes dim"],
    indices: Int[Tensor, " n"],
    estimator: Estimator,
    beta: float,
    mask: Bool[Tensor, " n"] | None = None,
    statistics_leaf: Float[Tensor, " size"] | None = None,
    sample_leaf: Float[Tensor, "sample dim"] | None = None,
    sampled: Float[Tensor, "sample dim"] | None = None,
) -> tuple[Float[Tensor, "... dim"], Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """``z_q``, the codebook loss, the commitment loss, and their total (van den Oord et al. 2017, eq. 2 and 3).

    ``codebook = 1/(N D) sum (sg[z_e] - e)^2``, ``commitment = beta/(N D) sum (z_e - sg[e])^2`` over the N vectors that
    ``mask`` leaves. The derivative of z_q by z is the estimator's; by the codebook it is zero.
    The codebook loss is differentiable, and part of the total, where the codebook is differentiable.

    In backward ``statistics_leaf`` receives ``statistics_of`` the batch as its gradient, its size saying whether sums
    are wanted, and ``sample_leaf`` receives ``sampled``.
    """
    if mask is not None:
        z = torch.where(mask.view(*z.shape[:-1], 1), z, 0)  # a padded position may hold anything, NaN too
    z_q, codebook_loss, commitment, total, *_ = _Quantize.apply(
        z, codebook, statistics_leaf, sample_leaf, indices, sampled, mask, estimator, beta
    )
    return z_q, codebook_loss, commitment, total


def statistics_of(
    residual: Float[Tensor, "n dim"],
    indices: Int[Tensor, " n"],
    mask: Bool[Tensor, " n"] | None,
    codes: int,
    size: int,
) -> Float[Tensor, " size"]:
    """``[vectors that are not finite, counts, sums of residuals z - e]``, flat; sums only where ``size`` has room.

    A vector that is not finite is counted in the first entry and nowhere else.
    """
    flat = residual.new_zeros(size)
    if residual.device.type != "cpu":  # on the CPU the search has raised
        mask = _without_faults(flat, residual, mask)
    if mask is not None:
        residual = torch.where(mask[:, None], residual, 0)
    ones = None if mask is None else mask.to(residual.dtype)
    _add_by_code(residual, indices, flat[1 : 1 + codes], flat[1 + codes :].view(-1, residual.shape[1]), ones)
    return flat


def _add_by_code(
    residual_ND: Tensor, indices_N: Tensor, counts_K: Tensor, sums_KD: Tensor, weights_N: Tensor | None = None
) -> None:
    """Adds how often each code was chosen, and its residuals, to what there is of ``counts_K`` and ``sums_KD``."""
    differentiated = residual_ND.requires_grad and torch.is_grad_enabled()
    if weights_N is None and not differentiated and native.takes(indices_N, residual_ND, counts_K, sums_KD):
        native.add_by_code(residual_ND, indices_N, counts_K, sums_KD)
        return
    if weights_N is None:
        weights_N = residual_ND.new_ones(()).expand(len(indices_N))
    if len(counts_K):
        counts_K.index_add_(0, indices_N, weights_N)
    if len(sums_KD):
        sums_KD.index_add_(0, indices_N, residual_ND)


def _without_faults(flat: Tensor, residual_ND: Tensor, mask_N: Tensor | None) -> Tensor:
    finite_N = torch.isfinite(residual_ND).all(1)
    faulty_N = ~finite_N if mask_N is None else ~finite_N & mask_N
    flat[0] = faulty_N.sum()
    return finite_N if mask_N is None else finite_N & mask_N


def _pull_back(estimator: Estimator, g: Tensor, z: Tensor | None, z_q: Tensor | None) -> Tensor:
    if z is None or z_q is None:
        return estimator.pull_back(g, z, z_q, torch)
    work = torch.promote_types(g.dtype, torch.float32)
    return estimator.pull_back(g.to(work), z.to(work), z_q.to(work), torch).to(g.dtype)


class _Quantize(torch.autograd.Function):
    """Keeps indices and the residual z - e, never the codebook: a step between forward and backward is no error."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        codebook_KD: Tensor,
        statistics: Tensor | None,
        sample_SD: Tensor | None,
        indices_N: Tensor,
        sampled_SD: Tensor | None,
        mask_N: Tensor | None,
        estimator: Estimator,
        beta: float,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        z_ND = z.reshape(-1, z.shape[-1])  # in here it costs no node of the graph
        wide = torch.promote_types(torch.promote_types(z_ND.dtype, codebook_KD.dtype), torch.float32)
        if mask_N is None:
            ctx.scale = 1.0 / max(z_ND.numel(), 1)
        else:
            ctx.scale = 1.0 / (mask_N.sum() * z_ND.shape[1]).clamp(min=1).to(wide)
        if mask_N is None and native.takes(indices_N, z, codebook_KD):
            z_q, residual_ND, squares = native.look_up(z, codebook_KD, indices_N)
            mean = residual_ND.new_tensor(squares * ctx.scale)
        else:
            # A lookup in the shape of z, because a view of one among several outputs could not be changed in place.
            e = torch.embedding(codebook_KD, indices_N.view(z.shape[:-1]))
            if mask_N is not None:
                e = torch.where(mask_N.view(*z.shape[:-1], 1), e, 0)
            if z.device.type != "cpu":  # where the search cannot raise, NaN shows the fault to a gradient scaler
                e = torch.where(torch.isfinite(z).all(-1, keepdim=True), e, torch.nan)
            residual_ND = z_ND.to(wide) - e.view(z_ND.shape)
            mean = residual_ND.square().sum() * ctx.scale
            z_q = e.to(z.dtype)
        commitment = mean * beta
        ctx.estimator, ctx.beta, ctx.codes = estimator, beta, len(codebook_KD)
        ctx.size, ctx.statistics_dtype = (0, None) if statistics is None else (statistics.numel(), statistics.dtype)
        ctx.shape, ctx.z_dtype, ctx.codebook_dtype = z.shape, z.dtype, codebook_KD.dtype
        points = (z, z_q.clone()) if estimator.needs_points else (None, None)  # who changes z_q shall not change this
        # Two outputs of one memory: a second derivative may reach z through one and the codebook through the other,
        # but through the stopped side of a loss neither.
        residual_z_ND, residual_e_ND = residual_ND, residual_ND.detach()
        ctx.save_for_backward(indices_N, mask_N, residual_z_ND, residual_e_ND, sampled_SD, *points)
        total = mean + commitment
        if not codebook_KD.requires_grad:
            ctx.mark_non_differentiable(mean)
            total = commitment.clone()
        return z_q, mean, commitment, total, residual_z_ND, residual_e_ND

    @staticmethod
    def backward(
        ctx: Any,
        g_q: Tensor | None,
        g_codebook: Tensor | None,
        g_commitment: Tensor | None,
        g_total: Tensor | None,
        g_residual_z: Tensor | None,
        g_residual_e: Tensor | None,
    ) -> tuple:
        """The residual is an output too, so that a second derivative through the losses is right."""
        indices_N, mask_N, residual_z_ND, residual_e_ND, sampled_SD, *points = ctx.saved_tensors
        z, z_q = (None if point is None else point.detach() for point in points)
        needs_z, needs_codebook, needs_statistics, needs_sample = ctx.needs_input_grad[:4]
        g_z = g_e = statistics = None
        if g_total is not None:
            g_codebook = g_total if g_codebook is None else g_codebook + g_total
            g_commitment = g_total if g_commitment is None else g_commitment + g_total
        if needs_z:
            if g_q is not None:
                g_z = _pull_back(ctx.estimator, g_q, z, z_q)
            if g_commitment is not None:
                residual, pull = residual_z_ND.view(ctx.shape), g_commitment * (2 * ctx.beta * ctx.scale)
                g_z = residual * pull if g_z is None else torch.addcmul(g_z, residual, pull)
            if g_residual_z is not None:
                g_residual_z = g_residual_z.view(ctx.shape)
                g_z = g_residual_z if g_z is None else g_z + g_residual_z
            if g_z is not None:
                g_z = g_z.to(ctx.z_dtype)
        if needs_statistics:
            flat = statistics_of(residual_z_ND.detach(), indices_N, mask_N, ctx.codes, ctx.size)
            statistics = flat.to(ctx.statistics_dtype)
        if needs_codebook and (g_codebook is not None or g_residual_e is not None):
            g_e = residual_e_ND.new_zeros(ctx.codes, residual_e_ND.shape[1])
            if g_codebook is not None:
                _add_by_code(residual_e_ND, indices_N, g_e.new_empty(0), g_e)
                g_e = g_e * (g_codebook * (-2 * ctx.scale))
            if g_residual_e is not None:
                g_e.index_add_(0, indices_N, g_residual_e, alpha=-1)
            g_e = g_e.to(ctx.codebook_dtype)
        sample = sampled_SD if needs_sample else None
        return g_z, g_e, statistics, sample, None, None, None, None, None
