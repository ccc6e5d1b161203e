"""Laws 5, 6, 8, 9 and 10: the derivatives of z_q and of the losses, and whether these move what they are to move.

Of a sum of squares ``a/(N D) sum |sg[z] - e|^2 + b/(N D) sum |z - sg[e]|^2`` autograd's gradients give the weights
``b = c_z`` by z and ``a = c_e`` by the codebook; a difference of the value between two z, which nothing stops,
gives a + b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqkit import reference
from vqkit.gradients.audit.findings import Found, finding, percent
from vqkit.gradients.audit.report import Kept, NotMeasured, Severity, law
from vqkit.gradients.audit.subject import Subject
from vqkit.gradients.routes import gradients

# --- laws 5 and 10: z_q ------------------------------------------------------------------------------------------


def _pulled_back(z_q: Tensor, g: Tensor, end: Tensor) -> Tensor:
    """``J^T g``, J the derivative of z_q by ``end``; zeros where there is no path."""
    (found,) = gradients((z_q * g).sum(), [end])
    return torch.zeros_like(end) if found is None else found


def law_05_estimator(subject: Subject) -> Found:
    """The gradient of z_q reaches z by the estimator's closed form, and nothing of it the codebook."""
    g, z = torch.randn(4, 16, subject.dim), torch.randn(4, 16, subject.dim, requires_grad=True)
    ways: dict[str, tuple[Severity, Tensor]] = {"": ("fault", z)}
    ways[", under a frozen encoder (z without gradient)"] = "hazard", z.detach()
    for name, (severity, given) in ways.items():
        copy = subject.fresh()
        z_q = copy(given).z_q
        if leak := float(_pulled_back(z_q, g, copy.tensor).norm()):
            told = f"of a gradient of norm {float(g.norm()):.3g} at z_q one of {leak:.3g} arrives in the codebook{name}"
            return [finding("leak", told, severity)]
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


# --- laws 6, 8 and 9: the losses ----------------------------------------------------------------------------------


class Weights(NamedTuple):
    """``c_z`` and ``c_e`` as above, and ``slope``, their sum by the value.

    ``offset`` is the share of the value, ``others`` that of the gradients, that is not of a sum of squares.
    """

    c_z: float
    c_e: float
    slope: float
    offset: float
    others: float


def _near(a: float, b: float) -> bool:
    return abs(a - b) < 1e-3 * max(1e-3, abs(a), abs(b))


def _weights(subject: Subject, z: Tensor) -> Weights:
    """By regression; each call on a copy of its own, since forward may learn."""
    copy, z = subject.of_rows().fresh(), z.clone().requires_grad_()
    table, out = copy.table(), copy(z)
    by_z, by_codes = gradients(out.loss, [z, copy.tensor])
    error = z.detach() - table[out.indices]
    of_z = 2 / z.numel() * error
    of_codes = torch.zeros_like(table).index_add(0, out.indices.view(-1), -of_z.view(-1, copy.dim))
    g_z = torch.zeros_like(of_z) if by_z is None else by_z
    g_codes = torch.zeros_like(table) if by_codes is None else copy.as_table(by_codes)
    c_z, c_e = (float((g * of).sum() / of.square().sum()) for g, of in ((g_z, of_z), (g_codes, of_codes)))
    others = float((g_z - c_z * of_z).norm() + (g_codes - c_e * of_codes).norm())
    whole = float(g_z.norm() + g_codes.norm())
    mse, value = float(error.square().mean()), float(out.loss.detach())
    # Half way to its code a vector keeps its code, and a square is a quarter: exact, where a small step would round.
    half_way = subject.fresh()((z.detach() - error / 2).requires_grad_()).loss
    slope = (value - float(half_way.detach())) / (0.75 * mse)
    return Weights(c_z, c_e, slope, 1 - slope * mse / (value or 1.0), others / max(whole, 1e-30))


def law_06_losses(subject: Subject) -> Found:
    """The codebook loss has weight 1 and moves the codes alone; beta scales the commitment; the gradients are right."""
    z, learnable = torch.randn(4, 16, subject.dim), subject.learnable
    w, few = _weights(subject, z), _weights(subject, z[:, :4].contiguous())
    if w.others > 1e-3:
        raise NotMeasured(f"the loss is not of |z - e|^2 alone: {w.others:.2g} of its gradient is of other terms")
    told = f"the gradient by z has weight {w.c_z:.3g}, that by the codes {w.c_e:.3g}"
    # z_q - sg[z] has the value q - z, and the derivative 1 by z: the codebook term pushes z away.
    if abs(w.c_e) < 1e-6 and w.slope > 1 and _near(w.c_z, w.slope - 2):
        return [finding("after the estimator", f"{told}: z_q - z.detach() is what is squared")]
    unstopped = _near(w.c_z, w.slope) and _near(w.c_e, w.slope)
    reported = not learnable and _near(w.slope - w.c_z, 1)  # the codebook loss of codes that are averages
    if not (_near(w.c_z + w.c_e, w.slope) or unstopped or reported):
        told += f", together {w.c_z + w.c_e:.4g}; the value changes as {w.slope:.4g} mean |z - e|^2"
        return [finding("value", told)]
    unit = 64.0 if abs(w.slope) > 2 * abs(few.slope) else 1.0  # 16 vectors and 64: of a mean the weights are the same
    unit *= subject.dim if subject.dim > 1 and _near(w.c_e, unit * subject.dim) else 1.0
    c_z, c_e, found = w.c_z / unit, w.c_e / unit, Found()
    if unit > 1:
        scaled = f"{told}, for 64 vectors of dim {subject.dim}: {unit:g} times those of means"
        found.append(finding("sums", scaled))
    if learnable and abs(c_e) > 1e-6 and not _near(c_e, 1):
        if _near(c_z, c_e):
            found.append(finding("beta", f"{told}: one weight on both"))
        elif _near(c_z, 1):
            found.append(finding("beta", f"{told}: beta is on the wrong term, or the stop-gradients are exchanged"))
        else:
            found.append(finding("weight", f"{told}: the codebook loss has weight {c_e:.3g}"))
    codes = f"the codebook loss has weight {c_e:.3g}" if learnable else "no gradient reaches the codebook"
    found = found or [Kept(law(6), f"{codes}, the commitment beta = {c_z:.3g}")]
    if not learnable and abs(w.offset) > 1e-4:
        told = f"{percent(w.offset)} of the loss has no gradient: it is of the codebook, and that is a buffer"
        found.append(finding("idle term", told))
    second = _second_derivative(subject, z, w.c_z)
    return [*found, *(second or [Kept(law(8), "first and second derivatives of the losses are those of their values")])]


def _second_derivative(subject: Subject, z: Tensor, c_z: float) -> Found:
    if abs(c_z) < 1e-6:
        return []
    u, z = torch.randn_like(z), z.clone().requires_grad_()
    try:
        (first,) = torch.autograd.grad(subject.fresh()(z).loss, z, create_graph=True)
        (second,) = torch.autograd.grad((first * u).sum(), z) if first.requires_grad else (torch.zeros_like(z),)
    except RuntimeError as error:
        return [finding("second derivative", f"raises {' '.join(str(error).split())[:100]}")]
    times = float((second * u).sum() / u.square().sum()) * z.numel() / (2 * c_z)
    return [] if _near(times, 1) else [finding("second derivative", f"by z it is {times:.3g} times that")]


def law_09_live(subject: Subject) -> Found:
    """Something moves the codebook, and every term of the loss moves something."""
    copy, z = subject.fresh(), torch.randn(3, 4, 16, subject.dim)
    parameters = [p for p in copy.layer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0) if parameters else None
    outs = [copy.learn(batch, optimizer) for batch in z]
    moved = not torch.equal(subject.table(), copy.table())
    if copy.learnable and not moved:
        return [finding("dead codebook", "three SGD steps over layer.parameters() leave it bit for bit as it was")]
    named = [name for name in outs[0].scalars if "loss" in name or "commit" in name]
    if outs[0].total is None and named:
        return [finding("idle term", f"{', '.join(named)} depends on nothing that takes a gradient")]
    if not moved and subject.composed:
        raise NotMeasured("the table is a buffer that nothing moves; what it is projected by may learn")
    return [Kept(law(9), "the codebook learns" if moved else "the codebook is a buffer that nothing moves: frozen")]


CHECKS = (law_05_estimator, law_06_losses, law_09_live, law_10_gain)
