"""Quantizers that break a law of values or gradients, each with a fault that was found in public code.

``Plain`` is the textbook quantizer in steps. It keeps these laws, which is tested too, so that what the contract
rejects in the others is the one step that they replace.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import vqkit
from tests.contract.law import Broken
from tests.zoo import Case, made
from vqkit.functional import nearest_codes


class Plain(vqkit.VectorQuantizer):
    """Search, look up, estimate, and two means."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> vqkit.Quantized:
        z_ND, mask_N = z.reshape(-1, self.dim), None if mask is None else mask.reshape(-1)
        if mask_N is not None:
            z_ND = torch.where(mask_N[:, None], z_ND, 0)
        indices_N = self.search(z_ND)
        q_ND = self.look_up(indices_N)
        if mask_N is not None:
            q_ND = torch.where(mask_N[:, None], q_ND, 0)
            indices_N = torch.where(mask_N, indices_N, -1)
        z_q = self.estimate(z_ND, q_ND.to(z.dtype))
        codebook, commitment = self.terms(z_ND, q_ND, z_q, mask_N)
        return vqkit.Quantized(z_q.view(z.shape), indices_N.view(z.shape[:-1]), self.losses(codebook, commitment))

    def encode(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.search(z.reshape(-1, self.dim)).view(z.shape[:-1])

    def search(self, z_ND: Tensor) -> Tensor:
        return nearest_codes(z_ND, self.codebook)

    def look_up(self, indices_N: Tensor) -> Tensor:
        return self.codebook[indices_N]

    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return q_ND.detach() + (z_ND - z_ND.detach())

    def terms(self, z_ND: Tensor, q_ND: Tensor, z_q_ND: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
        codebook, commitment = q_ND - z_ND.detach(), z_ND - q_ND.detach()
        return self.mean(codebook, mask_N), self.commitment * self.mean(commitment, mask_N)

    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        counted = error_ND.shape[0] if mask_N is None else mask_N.sum().to(error_ND.dtype)
        return error_ND.square().sum() / torch.as_tensor(counted * self.dim).clamp(min=1)

    def losses(self, codebook: Tensor, commitment: Tensor) -> vqkit.Losses:
        return vqkit.Losses(codebook, commitment, codebook + commitment if self.update.by_gradient else commitment)


# --- values -------------------------------------------------------------------------------------------------------


class SignSlip(Plain):
    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return z_ND - (q_ND - z_ND).detach()


class RoundedValue(Plain):
    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return z_ND + (q_ND - z_ND).detach()


class ExpandedDistance(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        e_KD = self.codebook.to(z_ND.dtype)
        return (z_ND.square().sum(1, keepdim=True) - 2 * z_ND @ e_KD.T + e_KD.square().sum(1)).argmin(1)


class ClampedRoot(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        squares = (z_ND.double()[:, None] - self.codebook.double()).square().sum(2)
        return squares.clamp(min=1e-8).sqrt().argmin(1)


class UnguardedAutocast(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().search(z_ND)
        e_KD = self.codebook - self.codebook.mean(0)
        return (e_KD.square().sum(1) / 2 - (z_ND - self.codebook.mean(0)) @ e_KD.T).argmin(1)


class SplitDependent(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        return torch.cdist(z_ND.float(), self.codebook.float()).argmin(1)


class LastForPadding(Plain):
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.codebook[indices].to(dtype or self.codebook.dtype)


class ClampedIndex(Plain):
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return super().decode(indices.clamp(-1, self.codebook_size - 1), dtype)


class FaultsAccepted(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        return super().search(z_ND.nan_to_num())


class MeanOfNothing(Plain):
    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        return (error_ND if mask_N is None else error_ND[mask_N]).square().mean()


class PaddingCounted(Plain):
    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        return super().mean(error_ND, None)


class PaddingMultiplied(Plain):
    """The fault multiplies a mask (N,) of floats with (N, 1) errors: every position is counted N times."""

    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        plain = super().mean(error_ND, mask_N)
        return plain if mask_N is None else plain * len(mask_N)


class AllDistances(Plain):
    def search(self, z_ND: Tensor) -> Tensor:
        return torch.cdist(z_ND.double(), self.codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


class OneHot(Plain):
    def look_up(self, indices_N: Tensor) -> Tensor:
        return F.one_hot(indices_N, self.codebook_size).to(self.codebook.dtype) @ self.codebook


# --- gradients ----------------------------------------------------------------------------------------------------


class NoEstimator(Plain):
    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return q_ND


class IntoBoth(Plain):
    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        return q_ND + (z_ND - z_ND.detach())


class LengthNotStopped(Plain):
    """A rotation estimator whose scale |q|/|z| was not detached: the reconstruction loss trains the codes' lengths."""

    def estimate(self, z_ND: Tensor, q_ND: Tensor) -> Tensor:
        scale = q_ND.norm(dim=1, keepdim=True) / z_ND.detach().norm(dim=1, keepdim=True)
        moved = scale * z_ND.detach()
        return super().estimate(z_ND, q_ND) + (moved - moved.detach())


class BetaOnTheCodebook(Plain):
    def terms(self, z_ND: Tensor, q_ND: Tensor, z_q_ND: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
        codebook, commitment = super().terms(z_ND, q_ND, z_q_ND, mask_N)
        return self.commitment * codebook, commitment / self.commitment


class OneWeight(Plain):
    def terms(self, z_ND: Tensor, q_ND: Tensor, z_q_ND: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
        codebook, commitment = super().terms(z_ND, q_ND, z_q_ND, mask_N)
        return self.commitment * codebook, commitment


class StoppedOnTheWrongSide(Plain):
    def terms(self, z_ND: Tensor, q_ND: Tensor, z_q_ND: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
        codebook, commitment = super().terms(z_ND, q_ND, z_q_ND, mask_N)
        return commitment / self.commitment, codebook * self.commitment


class LossAfterEstimator(Plain):
    def terms(self, z_ND: Tensor, q_ND: Tensor, z_q_ND: Tensor, mask_N: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().terms(z_ND, z_q_ND, z_q_ND, mask_N)


class NoCodebookLoss(Plain):
    def losses(self, codebook: Tensor, commitment: Tensor) -> vqkit.Losses:
        return vqkit.Losses(codebook, commitment, commitment)


class _Commitment(torch.autograd.Function):
    """A backward written by hand, with the factor 2 of the square forgotten."""

    @staticmethod
    def forward(ctx, error_ND: Tensor) -> Tensor:
        ctx.save_for_backward(error_ND)
        return error_ND.square().sum() / max(error_ND.numel(), 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (error_ND,) = ctx.saved_tensors
        return gradient * error_ND / max(error_ND.numel(), 1)


class HalfGradient(Plain):
    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        return _Commitment.apply(error_ND) if mask_N is None else super().mean(error_ND, mask_N)


class _Once(torch.autograd.Function):
    """A mean of squares whose backward reads numbers and not the graph."""

    @staticmethod
    def forward(ctx, error_ND: Tensor) -> Tensor:
        ctx.error_ND = error_ND.detach()
        return error_ND.square().sum() / max(error_ND.numel(), 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 2 * ctx.error_ND / max(ctx.error_ND.numel(), 1)


class NoSecondDerivative(Plain):
    def mean(self, error_ND: Tensor, mask_N: Tensor | None) -> Tensor:
        return _Once.apply(error_ND) if mask_N is None else super().mean(error_ND, mask_N)


class WithOrthogonality(NamedTuple):
    codebook: Tensor
    commitment: Tensor
    orthogonality: Tensor
    total: Tensor


class RegularisedBuffer(Plain):
    def losses(self, codebook: Tensor, commitment: Tensor) -> WithOrthogonality:
        unit_KD = F.normalize(self.codebook, dim=1)
        orthogonality = (unit_KD @ unit_KD.T).square().mean() - 1 / self.codebook_size
        return WithOrthogonality(codebook, commitment, orthogonality, commitment + orthogonality)


class PublishedRotation:
    """The rotation trick with ``1e-6`` in its divisors and no bound: the gain at 1e-12 is 1e6 and more."""

    needs_points: ClassVar[bool] = True
    gain = 10.0

    def pull_back(self, gradient: Tensor, z: Tensor, q: Tensor, xp: object) -> Tensor:
        length_z, length_q = (x.norm(dim=1, keepdim=True) for x in (z, q))
        a, b = z / length_z.clamp(min=1e-6), q / length_q.clamp(min=1e-6)
        s = F.normalize(a + b, dim=1, eps=1e-6)
        rotated = gradient - 2 * (gradient * s).sum(1, keepdim=True) * s + 2 * (gradient * b).sum(1, keepdim=True) * a
        return length_q / length_z.clamp(min=1e-6) * rotated


CONTROL = Case("plain", made(Plain), "gradient")


def _broken(cls: type[Plain], breaks: str, found_in: str, update: vqkit.Gradient | vqkit.Frozen = vqkit.Gradient()):
    kind = "gradient" if update.by_gradient else "frozen"
    return Broken(Case(cls.__name__, made(cls, update=update), kind), breaks, found_in)


BROKEN: tuple[Broken, ...] = (
    _broken(SignSlip, "law_01_rows", "`z - (q - z).detach()`: the decoder gets 2 z - q"),
    _broken(RoundedValue, "law_01_rows", "`z + (q - z).detach()`: rounded, by up to 0.05 in bfloat16"),
    _broken(ExpandedDistance, "law_02_nearest", "|z|^2 - 2 z.e + |e|^2 in float32: wrong far from the origin"),
    _broken(ClampedRoot, "law_02_nearest", "`clamp(1e-8).sqrt()`: every code closer than 1e-4 ties, the lowest wins"),
    _broken(UnguardedAutocast, "law_02_nearest", "autocast is disabled for CUDA alone: bfloat16 products on the CPU"),
    _broken(SplitDependent, "law_03_invariance", "cdist changes its algorithm above 25 rows: batches change indices"),
    _broken(LastForPadding, "law_04_round_trip", "`codebook[indices]`: the padding index -1 is the last code"),
    _broken(ClampedIndex, "law_04_round_trip", "indices are clamped: one past the end is decoded without a word"),
    _broken(NoEstimator, "law_05_estimator", "no estimator: the encoder gets nothing from the reconstruction"),
    _broken(IntoBoth, "law_05_estimator", "`q + z - z.detach()`: the reconstruction trains the codebook as well"),
    _broken(LengthNotStopped, "law_05_estimator", "the rotation's scale is not detached and leaks into the codebook"),
    _broken(BetaOnTheCodebook, "law_06_losses", "beta scales the codebook term, the commitment has weight 1"),
    _broken(OneWeight, "law_06_losses", "one weight on both terms"),
    _broken(StoppedOnTheWrongSide, "law_06_losses", "the two stop-gradients are exchanged: right values"),
    _broken(LossAfterEstimator, "law_06_losses", "the losses are taken from z_q after the estimator: no code learns"),
    _broken(HalfGradient, "law_08_finite_differences", "a backward written by hand forgets a factor"),
    _broken(NoSecondDerivative, "law_08_finite_differences", "a backward on detached values: penalties lose a term"),
    _broken(NoCodebookLoss, "law_09_live_terms", "the codebook is a parameter in no loss: it stays as it was drawn"),
    _broken(RegularisedBuffer, "law_09_live_terms", "an orthogonality loss on a buffer moves nothing", vqkit.Frozen()),
    Broken(
        Case("PublishedRotation", made(estimator=PublishedRotation()), "gradient", gain=10.0),
        "law_10_gain",
        "the rotation trick at z = 0: no gradient there, and a gain of 1e5 beside it",
    ),
    _broken(FaultsAccepted, "law_15_faults", "NaN is given code 0 in silence, and training goes on"),
    _broken(MeanOfNothing, "law_16_masks", "the mean over an empty batch or mask is NaN"),
    _broken(PaddingCounted, "law_16_masks", "the loss is divided by the padded length too"),
    _broken(PaddingMultiplied, "law_16_masks", "mask and error broadcast: the loss grows by the batch size"),
    _broken(AllDistances, "law_20_memory", "all N x K distances at once"),
    _broken(OneHot, "law_20_memory", "the code is looked up by a one-hot matrix product"),
)
