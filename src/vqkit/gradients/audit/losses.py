"""Laws 6, 8 and 9: which losses there are, with what weight, and whether they move what they are to move.

Of a sum of squares ``a/(N D) sum |sg[z] - e|^2 + b/(N D) sum |z - sg[e]|^2`` autograd's gradients give the weights
``b = c_z`` by z and ``a = c_e`` by the codebook; a difference of the value between two z, which nothing stops,
gives a + b.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.gradients.audit.findings import Found, finding, percent
from vqkit.gradients.audit.report import Kept, NotMeasured, law
from vqkit.gradients.audit.subject import Subject
from vqkit.gradients.routes import gradients


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
    if out.total is None:
        raise NotMeasured("no loss of the layer depends on z or on a parameter")
    by_z, by_codes = gradients(out.total, [z, copy.tensor])
    error = z.detach() - table[out.indices]
    of_z = 2 / z.numel() * error
    of_codes = torch.zeros_like(table).index_add(0, out.indices.view(-1), -of_z.view(-1, copy.dim))
    weights, others, whole = [], 0.0, 0.0
    for arrived, of in ((by_z, of_z), (None if by_codes is None else copy.as_table(by_codes), of_codes)):
        arrived = torch.zeros_like(of) if arrived is None else arrived
        weights.append(float((arrived * of).sum() / of.square().sum()))
        others, whole = others + float((arrived - weights[-1] * of).norm()), whole + float(arrived.norm())
    mse, value = float(error.square().mean()), float(out.total.detach())
    # Half way to its code a vector keeps its code, and a square is a quarter: exact, where a small step would round.
    half_way = subject.fresh()((z.detach() - error / 2).requires_grad_()).total
    slope = (value - float(half_way.detach())) / (0.75 * mse)
    return Weights(*weights, slope, 1 - slope * mse / (value or 1.0), others / max(whole, 1e-30))


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
    second = _second_derivative(subject, z, w.c_z)
    return [*found, *(second or [Kept(law(8), "first and second derivatives of the losses are those of their values")])]


def _second_derivative(subject: Subject, z: Tensor, c_z: float) -> Found:
    if abs(c_z) < 1e-6:
        return []
    u, z = torch.randn_like(z), z.clone().requires_grad_()
    try:
        (first,) = torch.autograd.grad(subject.fresh()(z).total, z, create_graph=True)
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


def law_09_terms(subject: Subject) -> Found:
    """No part of the loss is of codes that are a buffer, and so moves nothing."""
    z, offsets = torch.randn(4, 16, subject.dim), []
    for scale in () if subject.learnable else (1.0, 3.0):
        copy = subject.fresh()
        copy.place(scale * torch.randn(copy.codes, copy.dim))
        weights = _weights(copy, z)
        offsets.append(0.0 if weights.others > 1e-3 else weights.offset)
    if max(map(abs, offsets), default=0.0) < 1e-4:
        return []
    told = f"{percent(offsets[0])} of the loss for one codebook, {percent(offsets[1])} for another"
    return [finding("idle term", f"{told}, have no gradient: the codebook is a buffer")]


CHECKS = (law_06_losses, law_09_live, law_09_terms)
