"""Laws 6, 8 and 9: which losses there are, with what weight, and whether they move what they are to move.

Of a sum of squares ``a/(N D) sum |sg[z] - e|^2 + b/(N D) sum |z - sg[e]|^2`` autograd's gradients give the weights
``b = c_z`` by z and ``a = c_e`` by the codebook; a difference of the value between two z, which nothing stops,
gives a + b.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.gradients.audit.findings import Found, finding
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

    @property
    def after_estimator(self) -> bool:
        """z_q - sg[z] has the value q - z, and the derivative 1 by z: the codebook term pushes z away."""
        return abs(self.c_e) < 1e-6 and self.slope > 1 and _near(self.c_z, self.slope - 2)

    def agrees(self, learnable: bool) -> bool:
        """Whether the gradients are those of the value: each term stopped on one side, on none, or detached."""
        unstopped = _near(self.c_z, self.slope) and _near(self.c_e, self.slope)
        reported = not learnable and _near(self.slope - self.c_z, 1)
        return _near(self.c_z + self.c_e, self.slope) or unstopped or reported or self.after_estimator


def _near(a: float, b: float) -> bool:
    return abs(a - b) < 1e-3 * max(1e-3, abs(a), abs(b))


def _wide(subject: Subject) -> tuple[Subject, Tensor]:
    """A copy, and vectors (4, 16, D) for it, in float64; in float32 where the layer cannot."""
    copy, z = subject.fresh(), torch.randn(4, 16, subject.dim)
    copy.layer.double()
    try:
        copy.fresh()(z.double())
    except RuntimeError:
        return subject.fresh(), z
    return copy, z.double()


def _call(copy: Subject, z: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and the loss."""
    out = copy(z)
    if out.total is None or out.indices is None:
        raise NotMeasured("no loss of the layer depends on z or on a parameter")
    return out.indices, out.total


def _weights(copy: Subject, z: Tensor) -> Weights:
    """By regression; each call on a copy of its own, since forward may learn."""
    probe, z, found = copy.fresh(), z.clone().requires_grad_(), []
    before, (indices, total) = probe.table(), _call(probe, z)
    by_z, by_codes = gradients(total, [z, probe.tensor])
    arrived = [0 * z.detach() if by_z is None else by_z]
    arrived.append(0 * before if by_codes is None else probe.as_table(by_codes))
    for table in (before, probe.table()):  # what learns in forward may take its losses after that
        error = z.detach() - table[indices]
        of_z = 2 / z.numel() * error
        of_codes = torch.zeros_like(table).index_add(0, indices.view(-1), -of_z.view(-1, copy.dim))
        weights = [float((g * of).sum() / of.square().sum()) for g, of in zip(arrived, (of_z, of_codes), strict=True)]
        others = [float((g - c * of).norm()) for g, c, of in zip(arrived, weights, (of_z, of_codes), strict=True)]
        found.append((sum(others) / max(1e-30, sum(float(g.norm()) for g in arrived)), weights, error))
    others_share, (c_z, c_e), error = min(found, key=lambda one: one[0])
    if error is found[1][2]:
        raise NotMeasured("forward moves the codes and then takes the loss, whose value is not that of one codebook")
    mse, value = float(error.square().mean()), float(total.detach())
    # Half way to its code a vector keeps its code, and a square is a quarter: exact, where a small step would round.
    slope = (value - float(_call(copy.fresh(), (z - error / 2).detach().requires_grad_())[1].detach())) / (0.75 * mse)
    return Weights(c_z, c_e, slope, 1 - slope * mse / (value or 1.0), others_share)


def _squares(subject: Subject) -> tuple[Weights, Subject, Tensor]:
    """The weights, and the copy and the vectors that they were measured on."""
    copy, z = _wide(subject)
    weights = _weights(copy, z)
    if weights.others > 1e-3:
        raise NotMeasured(f"the loss is not of |z - e|^2 alone: {weights.others:.2g} of its gradient is of other terms")
    return weights, copy, z


def law_06_losses(subject: Subject) -> Found:
    """The codebook loss has weight 1 and moves the codes alone; beta scales the commitment alone."""
    w, copy, z = _squares(subject)
    if not w.agrees(copy.learnable):
        raise NotMeasured("the gradients of the loss are not those of its value: see law 8")
    few = _weights(copy, z[:, :4].contiguous())
    unit = 64.0 if abs(w.slope) > 2 * abs(few.slope) else 1.0  # 16 vectors and 64: of a mean the weights are the same
    unit *= copy.dim if copy.dim > 1 and _near(w.c_e, unit * copy.dim) else 1.0
    c_z, c_e, scaled = w.c_z / unit, w.c_e / unit, Found()
    told = f"the gradient by z has weight {w.c_z:.3g}, that by the codes {w.c_e:.3g}"
    if unit > 1:
        scaled = [finding("sums", f"{told}, for 64 vectors of dim {copy.dim}: {unit:g} times those of means")]
    if w.after_estimator:
        return [finding("after the estimator", f"{told}: z_q - z.detach() is what is squared")]
    if copy.learnable and abs(c_e) > 1e-6 and not _near(c_e, 1):
        if _near(c_z, c_e):
            return [*scaled, finding("beta", f"{told}: one weight on both")]
        if _near(c_z, 1):
            named = [loss for name, loss in copy(z.requires_grad_()).losses.items() if "codebook" in name]
            exchanged = any(g is not None for loss in named for g in gradients(loss, [z]))
            how = "the stop-gradients are exchanged" if exchanged else "beta is on the wrong term"
            return [*scaled, finding("beta", f"{told}: {how}")]
        return [*scaled, finding("weight", f"{told}: the codebook loss has weight {c_e:.3g}")]
    codes = f"the codebook loss has weight {c_e:.3g}" if copy.learnable else "no gradient reaches the codebook"
    return scaled or [Kept(law(6), f"{codes}, the commitment beta = {c_z:.3g}")]


def law_08_gradients(subject: Subject) -> Found:
    """The gradients of the loss agree with finite differences, stop-gradients minded; second derivatives too."""
    w, copy, z = _squares(subject)
    if not w.agrees(copy.learnable):
        told = f"the value changes as {w.slope:.4g} mean |z - e|^2, its gradients are those of {w.c_z:.4g} by z"
        return [finding("value", f"{told} and {w.c_e:.4g} by the codes, together {w.c_z + w.c_e:.4g}")]
    if abs(w.c_z) < 1e-6 or w.after_estimator:
        return []
    u, z = torch.randn_like(z), z.clone().requires_grad_()
    try:
        (first,) = torch.autograd.grad(_call(copy, z)[1], z, create_graph=True)
        (second,) = torch.autograd.grad((first * u).sum(), z) if first.requires_grad else (torch.zeros_like(z),)
    except RuntimeError as error:
        return [finding("second derivative", f"raises {' '.join(str(error).split())[:100]}")]
    times = float((second * u).sum() / u.square().sum()) * z.numel() / (2 * w.c_z)
    return [] if _near(times, 1) else [finding("second derivative", f"by z it is {times:.3g} times that")]


def law_09_live(subject: Subject) -> Found:
    """Something moves the codebook, and every term of the loss moves something."""
    copy, z = subject.fresh(), torch.randn(3, 4, 16, subject.dim)
    before, parameters = copy.table(), [p for p in copy.layer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0) if parameters else None
    outs = [copy.learn(batch, optimizer) for batch in z]
    moved = not torch.equal(before, copy.table())
    if copy.learnable and not moved:
        return [finding("dead codebook", "three SGD steps over layer.parameters() leave it bit for bit as it was")]
    named = [name for name in outs[0].scalars if "loss" in name or "commit" in name]
    if outs[0].total is None and named:
        return [finding("idle term", f"{', '.join(named)} depends on nothing that takes a gradient")]
    return [Kept(law(9), "the codebook learns" if moved else "the codebook is a buffer that nothing moves: frozen")]


def law_09_terms(subject: Subject) -> Found:
    """No part of the loss is of codes that are a buffer, and so moves nothing."""
    (copy, z), offsets = _wide(subject), []
    if copy.learnable:
        return []
    for scale in (1.0, 3.0):
        copy.place(scale * torch.randn(copy.codes, copy.dim).to(z))
        weights = _weights(copy, z)
        offsets.append(0.0 if weights.others > 1e-3 else weights.offset)
    if max(map(abs, offsets)) < 1e-4:
        return []
    told = f"{100 * offsets[0]:.3g} % of the loss for one codebook, {100 * offsets[1]:.3g} % for another"
    return [finding("idle term", f"{told}, have no gradient: the codebook is a buffer")]


CHECKS = (law_06_losses, law_08_gradients, law_09_live, law_09_terms)
