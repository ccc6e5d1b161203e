"""How much the straight-through gradient knows of other codes: its promise against what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.functional import nearest_codes
from vqkit.gradients import kept

_NEXT = 5  # codes after the chosen one that each vector is tried with
_VECTORS = 64  # of the batch, evenly spaced: each costs 5 evaluations of the loss


class Quality(NamedTuple):
    """Pearson's correlation of the promised with the measured change over ``changes`` trials.

    None where it is not defined: all promises, or all changes, are equal, or some are not finite.
    """

    correlation: float | None
    changes: int


def straight_through_quality(
    z: Tensor, loss_of: Callable[[Tensor], Tensor], codes_KD: Tensor, channels_first: bool
) -> Quality:
    """Of ``g.(e_j - e_k)``, g the gradient at z_q, for the 5 codes j next after the chosen k; see ``trace``."""
    dim, axis = codes_KD.shape[1], 1 if channels_first else -1
    if z.ndim < 2 or z.shape[axis] != dim:
        raise ValueError(
            f"z has shape {tuple(z.shape)}; its {'axis 1' if axis == 1 else 'last axis'} must be {dim} long."
        )
    last = z.detach().movedim(axis, -1)
    vectors_ND = last.reshape(-1, dim)

    def evaluate(q_ND: Tensor) -> Tensor:
        kept.seed(0)  # dropout and noise fall the same way each time
        loss = loss_of(q_ND.view(last.shape).movedim(-1, axis).to(z.dtype))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_of returned a {type(loss).__name__}; it must return a scalar tensor.")
        if loss.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"loss_of returned {loss.dtype}, too coarse for what one code changes: return float32.")
        return loss

    tried = torch.linspace(0, len(vectors_ND) - 1, min(_VECTORS, len(vectors_ND))).round().long()
    chosen_N = nearest_codes(vectors_ND, codes_KD)
    q_ND = codes_KD[chosen_N]
    wide, wide_q = codes_KD.cpu().double(), q_ND.cpu().double()
    apart = torch.cdist(vectors_ND[tried].cpu().double(), wide)
    order = apart.scatter_(1, chosen_N[tried, None].cpu(), -1.0).argsort(1)[:, 1 : 1 + _NEXT]  # after the chosen one
    with torch.enable_grad():
        at = q_ND.clone().requires_grad_()
        loss = evaluate(at)
        if not loss.requires_grad:
            raise ValueError("loss_of(z_q) has no graph: compute it from z_q, without detach or no_grad.")
        slope_ND = torch.autograd.grad(loss, at)[0].cpu().double()
    promised, happened = [], []
    with torch.no_grad():
        before = float(evaluate(q_ND))
        for n, others in zip(tried.tolist(), order.tolist(), strict=True):
            for j in others:
                moved = q_ND.clone()
                moved[n] = codes_KD[j]
                promised.append(float(slope_ND[n] @ (wide[j] - wide_q[n])))
                happened.append(float(evaluate(moved)) - before)
    return Quality(_correlation(promised, happened), len(promised))


def _correlation(a: list[float], b: list[float]) -> float | None:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    value = float(x @ y / (x.norm() * y.norm()))
    return value if abs(value) <= 1.0 + 1e-9 else None
