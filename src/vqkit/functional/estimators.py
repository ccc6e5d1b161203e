"""Gradient estimators: what stands in for the derivative of z_q with respect to z, which argmin does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Estimator(Protocol):
    """An object for the ``estimator`` slot. ``gain`` bounds ``|pull_back(g, z, q)| / |g|`` for all z and q."""

    needs_points: ClassVar[bool]  # whether pull_back reads z and q, which must then be kept until backward

    @property
    def gain(self) -> float: ...

    def pull_back(
        self, gradient: Float[Tensor, "n dim"], z: Float[Tensor, "n dim"], q: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "n dim"]: ...


@dataclass(frozen=True)
class StraightThrough:
    """Copies the gradient: ``dL/dz_e = dL/dz_q``, gain 1 (van den Oord et al. 2017, section 3.2)."""

    needs_points: ClassVar[bool] = False

    @property
    def gain(self) -> float:
        return 1.0

    def pull_back(self, gradient: Tensor, z: Tensor, q: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class RotationTrick:
    """Rotates and scales the gradient as the code is rotated and scaled from z: ``dL/dz_e = lambda R^T dL/dz_q``.

    With ``a = z/|z|``, ``b = q/|q|``, ``c = a.b``, ``s = a + b``: ``R = I - s s^T/(1 + c) + 2 b a^T`` takes a onto b,
    and ``lambda = min(|q|/|z|, max_gain)``. The gradient is copied where z or q is zero; R is the identity where
    ``1 + c < 1e-6``. R is orthogonal: the gain is at most ``max(1, max_gain)``, at 0, e and -c e too, where the
    published form divides by zero. (Fifty et al. 2024, arXiv:2410.06424, section 4.2.)
    """

    needs_points: ClassVar[bool] = True
    max_gain: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.max_gain < float("inf"):
            raise ValueError(f"max_gain is {self.max_gain}; it must be positive and finite, for example 10.0.")

    @property
    def gain(self) -> float:
        return max(1.0, self.max_gain)

    def pull_back(self, gradient: Tensor, z: Tensor, q: Tensor) -> Tensor:
        work = torch.promote_types(gradient.dtype, torch.float32)
        g, z, q = gradient.to(work), z.to(work), q.to(work)
        # Dividing by the largest entry first keeps the norm of a vector of 1e-30 from underflowing to zero.
        largest_z, largest_q = z.abs().amax(-1, keepdim=True), q.abs().amax(-1, keepdim=True)
        undefined = (largest_z == 0) | (largest_q == 0)
        z, q = z / largest_z.masked_fill(undefined, 1.0), q / largest_q.masked_fill(undefined, 1.0)
        length_z, length_q = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
        a, b = z / length_z.masked_fill(undefined, 1.0), q / length_q.masked_fill(undefined, 1.0)
        ratio = (largest_q / largest_z.masked_fill(undefined, 1.0)) * (length_q / length_z.masked_fill(undefined, 1.0))
        scale = ratio.clamp(max=self.max_gain).masked_fill(undefined, 1.0)
        s = a + b
        one_plus_cosine = s.square().sum(-1, keepdim=True) / 2  # exact near 0, where 1 + a.b would cancel
        flat = undefined | (one_plus_cosine < 1e-6)
        across = (s * g).sum(-1, keepdim=True) / one_plus_cosine.masked_fill(flat, 1.0)
        rotated = g - across * s + 2 * (b * g).sum(-1, keepdim=True) * a
        return (scale * torch.where(flat, g, rotated)).to(gradient.dtype)
