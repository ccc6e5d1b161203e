"""What the checks of gradients and of learning share: copies to begin with, and what their findings say."""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.codebooks.starts import DataStart
from vqkit.gradients.audit.report import Finding, Kept, NotMeasured, Severity, law
from vqkit.gradients.audit.subject import Subject, state_of
from vqkit.quantizers import VectorQuantizer

Found = list[Finding | Kept]
_RANK = {5: 32, 6: 40, 8: 40, 9: 45, 10: 48, 11: 50}  # the others at 55: among themselves by their numbers
_LOSSES = "codebook loss 1/(N D) sum |sg[z] - e|^2, commitment loss beta/(N D) sum |z - sg[e]|^2"
_TERMS = "F.mse_loss(q, z.detach()) + beta * F.mse_loss(z, q.detach())"
_SUMS = "write it into the sums m and n too: m = n * codebook"

# name: law, severity; expected; why; fix
_FINDINGS: dict[str, tuple[int, Severity, str, str, str]] = {
    "no estimator": (
        *(5, "fault", "dL/dz is dL/dz_q, or another estimator's closed form"),
        "The encoder learns nothing from the reconstruction: it follows the commitment loss alone.",
        "z_q = z + (q - z).detach()",
    ),
    "multiplied": (
        *(5, "fault", "dL/dz is dL/dz_q, or another estimator's closed form"),
        "The encoder's gradient from the reconstruction has another length, or direction, than it is meant to.",
        "z_q = z + (q - z).detach(): z must stand in it once",
    ),
    "leak": (
        *(5, "fault", "the derivative of z_q by the codebook is exactly 0"),
        "The reconstruction loss moves the codes too, away from the vectors that choose them.",
        "z_q = z + (q - z).detach(): detach q, and its length, where z_q is made",
    ),
    "gain": (
        *(10, "hazard", "a bounded gain |dL/dz| / |dL/dz_q|"),
        "One vector near the origin, as after a ReLU, gives the encoder a gradient that drowns all others.",
        "bound the scale |q|/|z|, and copy the gradient where z is 0: vqkit.RotationTrick(max_gain=10)",
    ),
    "sums": (
        *(6, "hazard", _LOSSES),
        "Batch size, resolution or dim change the weight of this loss against the reconstruction.",
        "take means: .square().mean()",
    ),
    "after the estimator": (
        *(6, "fault", _LOSSES),
        "No code learns, and the encoder is pushed where it should be pulled; the loss's value looks right.",
        f"take the losses before the estimator: {_TERMS}",
    ),
    "beta": (
        *(6, "fault", _LOSSES),
        "beta scales how fast the codes follow as well, or only that: it does not tune the commitment.",
        f"beta on the commitment alone: {_TERMS}",
    ),
    "weight": (
        *(6, "hazard", _LOSSES),
        "Under SGD the codes learn at another rate than the learning rate says.",
        _TERMS,
    ),
    "value": (
        *(8, "fault", "gradients that sum to the change of the value, but for stop-gradients"),
        "The loss that is printed is not the one that is minimised: its weights mean something else than they say.",
        "check the backward that is written by hand: torch.autograd.gradcheck",
    ),
    "second derivative": (
        *(8, "hazard", "the second derivative of the loss, under create_graph=True"),
        "Gradient penalties and second-order methods lose a term, silently.",
        "save inputs with ctx.save_for_backward and compute with them; no detached numbers in backward",
    ),
    "dead codebook": (
        *(9, "fault", "a codebook that something moves"),
        "It is a parameter in no loss that is added: the codes stay as they were drawn.",
        "add F.mse_loss(q, z.detach()) to the loss, or update the codes by EMA",
    ),
    "idle term": (
        *(9, "fault", "every term of the loss moves something"),
        "It is added to the objective, looks like a term and does nothing.",
        "do not detach both sides; make the codes a parameter where a regulariser is to move them",
    ),
    "evaluation": (
        *(11, "fault", "evaluation changes no state"),
        "Validation trains the codebook, on validation data; a result changes with how often it is asked for.",
        "if self.training and torch.is_grad_enabled(): ...",
    ),
    "forward": (
        *(11, "hazard", "state changes by a training step alone"),
        "Whatever runs forward twice, or without a step, trains the codebook as well.",
        "learn in backward, or in a call after optimizer.step(), as vqkit.step(model) does",
    ),
    "once": (
        *(11, "hazard", "a batch counts once"),
        "The codebook learns at another rate than the rest of the model, silently.",
        "learn in backward, or in a call after optimizer.step(), as vqkit.step(model) does",
    ),
    "written": (
        *(11, "hazard", "the gradients of the forward pass"),
        "A second forward, or a step, before backward makes gradients wrong, or stops training.",
        "save in forward what backward needs; look nothing up in backward",
    ),
    "means": (
        *(12, "hazard", "a moving average of counts and of sums"),
        "A batch with 1 vector of a code weighs as much as one with 99: codes follow rare, noisy batches.",
        "e = m/n, with m the average of sums and n that of counts",
    ),
    "idle codes": (
        *(12, "fault", "codes that nothing chose keep their place"),
        "The start is lost for every code that the first batch does not choose.",
        "begin with n = 1 and m = the codebook, and leave rows without vectors alone",
    ),
    "fading": (
        *(12, "hazard", "codes that nothing chose keep their place"),
        "Rare codes are lost in long training: decayed sums underflow, or fall below the smoothing constant.",
        "update only rows that were chosen: e += (1 - d)/n * sum(z - e)",
    ),
    "half": (
        *(12, "hazard", "an average that goes on"),
        "Steps smaller than half a unit in the last place are rounded away: the average stalls.",
        "keep the codebook and its averages in float32",
    ),
    "zero rows": (
        *(13, "fault", "no zero rows after a start from data"),
        "They are hardly ever chosen where data lies off the origin: the codebook is that much smaller.",
        "fill up with vectors of the batch, slightly moved",
    ),
    "seed": (
        *(13, "hazard", "a start that the layer's state and the vectors decide"),
        "Ranks start apart unless they are synchronised, and a run is not repeated by its own seed.",
        "a generator of its own, seeded from the state",
    ),
    "forgotten start": (
        *(13, "fault", "the step after a start from data continues from it"),
        "Sums that remain from before the start overwrite it.",
        _SUMS,
    ),
    "revival": (
        *(14, "fault", "a revived code stays where it was put until it is chosen"),
        "Sums of the old place overwrite it: dead codes stay dead.",
        _SUMS,
    ),
    "memory": (
        *(14, "hazard", "a revived code stays where it was put until it is chosen"),
        "The optimizer's memory of the old row drags the new one away from its vector.",
        "zero the row in optimizer.state, as vqkit.step(model, optimizer) does",
    ),
    "threshold": (
        *(14, "hazard", "codes that are all chosen equally often live, whatever the batch size"),
        "The threshold is a count per step, so small batches replace live codes.",
        "count a code's age in vectors since it was chosen: vqkit.Reseed(after=20)",
    ),
    "drawn": (
        *(3, "fault", "the same result for the same state and vectors"),
        "Codes are drawn, not found: one input has several results.",
        "no noise in evaluation; in training a generator seeded from the state",
    ),
    "pickle": (
        *(17, "fault", "a state of tensors alone"),
        "To load it one must unpickle, which runs whatever code the file holds.",
        "keep configuration out of the state_dict",
    ),
    "not saved": (
        *(17, "fault", "the same codes and the same next steps after a load"),
        "Some of what decides is not saved: a resumed run learns otherwise than one that was not stopped.",
        "register_buffer for sums, counts and flags",
    ),
    "lenient": (
        *(17, "hazard", "a strict load refuses a state in which an entry is missing"),
        "A renamed or damaged file loads in silence, and the layer goes on with what was drawn.",
        "do not clear missing_keys in _load_from_state_dict",
    ),
    "overwritten": (
        *(17, "fault", "a codebook that was drawn, set or loaded stays until vectors move it"),
        "Sums that are kept beside the codebook, and do not agree with it, overwrite it.",
        _SUMS,
    ),
}  # fmt: skip


def finding(name: str, measured: str, severity: Severity | None = None) -> Finding:
    number, usual, expected, why, fix = _FINDINGS[name]
    return Finding(law(number), severity or usual, expected, measured, why, fix, _RANK.get(number, 55))


def waits(subject: Subject) -> bool:
    """Whether a flag says that the codebook has not started; it will, from the first batch."""
    named = [t for name, t in state_of(subject.layer).items() if "init" in name or "start" in name]
    return any(flag.numel() == 1 and not bool(flag) for flag in named)


def unstarted(subject: Subject) -> Subject:
    """A copy, or a newly built layer, whose codebook is to start from data."""
    copy = subject.fresh()
    for module in copy.layer.modules():
        if isinstance(module, VectorQuantizer) and isinstance(module.start, DataStart):
            entries = module.state_dict()
            module.load_state_dict({**entries, "codebook": 0 * entries["codebook"], "started": 0 * entries["started"]})
    copy = copy if waits(copy) or subject.makes is None else subject.new()
    if not waits(copy):
        raise NotMeasured("the codebook does not start from data")
    return copy


def ready(subject: Subject, train: bool = True) -> Subject:
    """A copy whose codebook has started; two of one subject have started alike."""
    copy = subject.fresh()
    if waits(copy):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            copy.learn(torch.randn(8, 32, subject.dim))
    copy.layer.train(train)
    return copy


def apart(subject: Subject, average: bool = False) -> tuple[Subject, Tensor, Tensor, Tensor]:
    """A copy that holds codes from N(0, 100); these; which of them are idle; vectors (1, n, D) beside the others.

    With ``average`` it must learn without an optimizer.
    """
    copy = ready(subject)
    codes, idle = 10 * torch.randn(copy.codes, copy.dim), torch.arange(copy.codes) % max(2, copy.codes // 32) != 0
    copy.place(codes)
    numbers = (~idle).nonzero()[:, 0].repeat(64)[: max(64, int((~idle).sum()))]
    near = (codes[numbers] + 0.01 * torch.randn(len(numbers), copy.dim))[None]
    found = copy.fresh(train=False)(near).indices
    if found is None or copy.codes < 2 or not torch.equal(found[0], numbers):
        raise NotMeasured("vectors beside a code do not choose that code")
    probe = copy.fresh()
    probe.learn(near + 1)
    if average and torch.equal(probe.table(), codes):
        raise NotMeasured("the codebook moves by an optimizer, or not at all: it keeps no average")
    return copy, codes, idle, near
