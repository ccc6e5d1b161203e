"""Laws 5 and 10: the derivative of z_q with respect to z, and what of it reaches the codebook."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqkit import reference
from vqkit.gradients.audit.findings import Found, finding
from vqkit.gradients.audit.report import Kept, NotMeasured, law
from vqkit.gradients.audit.subject import Subject
from vqkit.gradients.routes import gradients


def _pulled_back(z_q: Tensor, g: Tensor, end: Tensor) -> Tensor:
    """``J^T g``, J the derivative of z_q by ``end``; zeros where there is no path."""
    (found,) = gradients((z_q * g).sum(), [end])
    return torch.zeros_like(end) if found is None else found


def law_05_estimator(subject: Subject) -> Found:
    """The gradient of z_q reaches z by the estimator's closed form."""
    g, z = torch.randn(4, 16, subject.dim), torch.randn(4, 16, subject.dim, requires_grad=True)
    z_q = subject.fresh()(z).z_q
    found = _pulled_back(z_q, g, z)
    gain, times = float(found.norm() / g.norm()), float((found * g).sum() / g.square().sum())
    if gain < 1e-6:
        return [finding("no estimator", "dL/dz is 0")]
    if float((found - times * g).norm()) < 1e-3 * float(found.norm()):
        copied = Kept(law(5), "the gradient of z_q is copied to z (straight-through)")
        return [copied if abs(times - 1) < 1e-3 else finding("multiplied", f"dL/dz is {times:.3g} dL/dz_q")]
    of_q, points, codes, of_z = (t.detach().reshape(-1, subject.dim).double().numpy() for t in (g, z, z_q, found))
    rotated = reference.rotation_trick(of_q, points, codes, max_gain=np.inf)
    if np.median(np.linalg.norm(rotated - of_z, axis=1) / np.linalg.norm(rotated, axis=1)) < 1e-3:
        return [Kept(law(5), "the gradient of z_q is rotated and scaled as z is to q (rotation trick)")]
    cosine = times / gain
    raise NotMeasured(f"dL/dz is no closed form that is known here: gain {gain:.3g}, cosine with dL/dz_q {cosine:.3g}")


def law_05_leak(subject: Subject) -> Found:
    """Nothing of the gradient of z_q reaches the codebook."""
    copy, g = subject.fresh(), torch.randn(4, 16, subject.dim)
    leak = float(_pulled_back(copy(torch.randn_like(g).requires_grad_()).z_q, g, copy.tensor).norm())
    measured = f"of a gradient of norm {float(g.norm()):.3g} at z_q one of {leak:.3g} arrives in the codebook"
    return [finding("leak", measured)] if leak else []


def law_10_gain(subject: Subject) -> Found:
    """The gain |dL/dz| / |dL/dz_q| is finite and below 100 for z near 0, at e, at -e and beside it."""
    copy, e, aside = subject.fresh(), torch.randn(subject.dim), torch.randn(subject.dim)
    copy.place(e.expand(copy.codes, -1).clone())
    points = {"z = 0": 0 * e, "z = e": e, "z = -e": -e, "z = -0.001 e": -1e-3 * e}
    points |= {f"|z| = {s * float(aside.norm()):.0e}": s * aside for s in (1e-2, 1e-4, 1e-8, 1e-30)}
    points |= {f"z at {s:.0e} beside -e": -e + s * aside for s in (1e-1, 1e-3, 1e-5)}
    points["an ordinary z"] = aside
    z, g = torch.stack(list(points.values()))[:, None].requires_grad_(), torch.randn(len(points), 1, subject.dim)
    ratios = _pulled_back(copy(z).z_q, g, z).norm(dim=-1) / g.norm(dim=-1)
    gains = ratios.nan_to_num(torch.inf, torch.inf)[:, 0].tolist()
    most, where = max(zip(gains, points, strict=True), key=lambda pair: pair[0])
    if most < 100:
        return [Kept(law(10), f"the largest gain is {most:.3g}, for {where}")]
    measured = f"the gain is {most:.3g} for {where}, and {gains[-1]:.3g} for an ordinary z"
    return [finding("gain", measured, "fault" if gains[0] == torch.inf else "hazard")]


CHECKS = (law_05_estimator, law_05_leak, law_10_gain)
