"""Laws 11 to 14: when and how a codebook learns, starts and revives, seen in what its state is after a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint

from vqkit.gradients.audit.findings import Found, finding, percent
from vqkit.gradients.audit.report import Finding, Kept, NotMeasured, law
from vqkit.gradients.audit.subject import EachResult, Subject, state_of

# --- law 11: when it learns ---------------------------------------------------------------------------------------


def _by_grad(copy: Subject, z: Tensor) -> None:
    objective = copy(z.requires_grad_()).objective
    if objective.requires_grad:
        torch.autograd.grad(objective, z, allow_unused=True)


# the finding, what is done, whether gradients are enabled
_NOTHING = (
    ("evaluation", "eval() and no_grad", False, Subject.__call__),
    ("evaluation", "eval(), forward, backward and a step", True, Subject.learn),
    ("forward", "no_grad in training mode", False, Subject.__call__),
    ("forward", "forward alone in training mode", True, Subject.__call__),
    ("forward", "torch.autograd.grad (gradient penalties, measuring)", True, _by_grad),
)


def _changed(copy: Subject, gradients: bool, way: Callable) -> str:
    """The names of what changes in the state."""
    copy.step()  # what a step does with nothing to learn from is not what is asked here
    before = {key: tensor.clone() for key, tensor in state_of(copy.layer).items()}
    with torch.set_grad_enabled(gradients):
        way(copy, torch.randn(4, 16, copy.dim))
    copy.step()
    now = state_of(copy.layer)
    return ", ".join(key for key in before if not torch.equal(before[key].nan_to_num(), now[key].nan_to_num()))


def law_11_forward(subject: Subject) -> Found:
    """Nothing changes in evaluation, under no_grad, by forward alone or by autograd.grad."""
    said: dict[str, list[str]] = {"evaluation": [], "forward": []}
    for name, done, gradients, way in _NOTHING:
        if names := _changed(subject.fresh(train=name == "forward"), gradients, way):
            said[name].append(f"{done} changes {names}")
    return [finding(name, "; ".join(told)) for name, told in said.items() if told]


def law_11_unstarted(subject: Subject) -> Found:
    """Evaluation does not start the codebook."""
    try:
        names = _changed(subject.unstarted().fresh(train=False), False, Subject.__call__)
    except (ValueError, RuntimeError):
        return [Kept(law(11), "evaluation before the first training step is an error")]
    return [finding("early", f"before the first training step eval() and no_grad changes {names}")] if names else []


def law_11_once(subject: Subject) -> Found:
    """A batch counts once under checkpointing, in four micro-batches, and where z needs no gradient."""

    def after(parts: int = 1, grad: bool = True, checkpointed: bool = False) -> Tensor:
        copy = subject.fresh()
        torch.manual_seed(0)  # revival may draw
        if checkpointed:
            copy.layer.forward = partial(checkpoint, copy.layer.forward, use_reentrant=False)
        for part in z.chunk(parts):
            objective = copy(part.clone().requires_grad_(grad)).objective / parts
            if objective.requires_grad:
                objective.backward()
        copy.step(SGD([copy.tensor], lr=1.0) if copy.learnable else None)
        return copy.table()

    z, start = torch.randn(8, 16, subject.dim), subject.table()
    plain = after()
    if torch.equal(plain, start):
        raise NotMeasured("one step does not move the codebook")
    found: Found = []
    for name, way in (
        ("activation checkpointing", partial(after, checkpointed=True)),
        ("four micro-batches in place of one batch", partial(after, parts=4)),
        ("a frozen encoder (z without gradient)", partial(after, grad=False)),
    )[: 3 - subject.learnable]:  # what parameters get under a frozen encoder is a matter of law 5
        off = float((way() - plain).norm() / (plain - start).norm())
        if not off < 0.01:
            found.append(finding("once", f"under {name} the codebook's step is off by {percent(off)} of its length"))
    return found


def law_11_step_between(subject: Subject) -> Found:
    """A codebook written between forward and backward leaves the gradients as they were."""
    z, arrived = torch.randn(4, 16, subject.dim, requires_grad=True), list[Tensor]()
    for change in (0.0, 0.5):
        copy = subject.fresh()
        torch.manual_seed(0)
        objective = copy(z).objective
        with torch.no_grad():
            copy.tensor.add_(change)
        try:
            arrived += torch.autograd.grad(objective, z)
        except RuntimeError as error:
            return [finding("written", f"a codebook written before backward: {' '.join(str(error).split())[:100]}")]
    off = float((arrived[1] - arrived[0]).norm() / arrived[0].norm())
    told = f"a codebook written before backward changes dL/dz by {percent(off)}"
    return [finding("written", told)] if off > 1e-5 else []  # below that it is the order of a sum


# --- law 12: averages ---------------------------------------------------------------------------------------------


def apart(subject: Subject, average: bool = False) -> tuple[Subject, Tensor, Tensor, Tensor]:
    """A copy that holds codes from N(0, 100); these; which of them are idle; vectors (1, n, D) beside the others.

    With ``average`` it must learn without an optimizer.
    """
    copy = subject.fresh()
    codes, idle = 10 * torch.randn(copy.codes, copy.dim), torch.arange(copy.codes) % max(2, copy.codes // 32) != 0
    copy.place(codes)
    numbers = (~idle).nonzero()[:, 0].repeat(64)[: max(64, int((~idle).sum()))]
    near = (codes[numbers] + 0.01 * torch.randn(len(numbers), copy.dim))[None]
    found = copy.fresh(train=False)(near).indices
    if copy.codes < 2 or not torch.equal(found[0], numbers):
        raise NotMeasured("vectors beside a code do not choose that code")
    probe = copy.fresh()
    probe.learn(near + 1)
    if average and torch.equal(probe.table(), codes):
        raise NotMeasured("the codebook moves by an optimizer, or not at all: it keeps no average")
    return copy, codes, idle, near


def _far(table: Tensor, vectors: Tensor, distance: float) -> Tensor:
    """Which rows are farther than this from every vector: those that lie on one were revived."""
    return torch.cdist(table, vectors).min(1).values > distance


def law_12_average(subject: Subject) -> Found:
    """The codebook is a moving average of counts and of sums, whatever the sizes of batches."""
    copy, codes, _, _ = apart(subject, average=True)
    copy.learn((codes[torch.tensor([0] + 9 * [1])] + 0.5)[None])
    one, nine = ((copy.table() - codes)[:2].mean(1) / 0.5).tolist()
    told = f"a code moves {percent(one)} of the way to 1 vector, {percent(nine)} to the mean of 9"
    if 0 < one < 0.9 and abs(nine / one - 1) < 0.05:
        return [finding("means", f"in batches of different sizes: {told}")]
    decays = [c * (1 - way) / (way + c * (1 - way)) if way else torch.nan for c, way in ((1, one), (9, nine))]
    if not abs(decays[0] - decays[1]) < 0.02:
        raise NotMeasured(f"no known average: {told}")
    return [Kept(law(12), f"an average of counts and of sums with decay {decays[0]:.3g}")]


def law_12_first_step(subject: Subject) -> Found:
    """On the first step codes that nothing chose stay where they are."""
    copy, before, idle = subject.fresh(), subject.table(), torch.ones(subject.codes, dtype=torch.bool)
    z = before[::2][:32].repeat(4, 1)
    z = (z + 0.01 * before.std() * torch.randn_like(z))[None]
    idle[copy.learn(z).indices.view(-1)] = False
    after = copy.table()
    moved = idle & ((after - before).norm(dim=1) > 1e-3 * before.norm(dim=1))
    moved &= _far(after, z[0], 0.1 * float(before.std()))
    if not moved.any():
        return []
    lengths = [float(table[moved].norm(dim=1).mean()) for table in (before, after)]
    told = f"{int(moved.sum())} of {int(idle.sum())} idle codes move on the first step: their length goes from "
    told += f"{lengths[0]:.3g} to {lengths[1]:.3g}"
    if not 0.1 < lengths[1] / lengths[0] < 10:
        return [finding("idle codes", told)]
    return [finding("overwritten" if subject.waiting is None else "forgotten start", told)]


def law_12_idle(subject: Subject) -> Found:
    """Codes that nothing chose for thousands of steps keep their place."""
    first, codes, idle, near = apart(subject, average=True)
    first.learn(near)
    for left in (1e-5, 1e-44):  # what so many idle steps leave of decayed sums; float32 ends at 1.4e-45
        copy = first.fresh()
        for name, tensor in state_of(copy.layer).items():
            if tensor.numel() in (copy.codes, codes.numel()) and tensor.is_floating_point() and name != copy.codebook:
                rows = tensor.view(-1) if tensor.numel() == copy.codes else copy.as_table(tensor)
                rows.data[idle] = (rows[idle].double() * left).to(tensor)
        for _ in range(20):
            copy.learn(near)
        off = ((copy.table() - codes).norm(dim=1) / codes.norm(dim=1))[idle & _far(copy.table(), near[0], 1)]
        if not len(off):
            raise NotMeasured("idle codes are revived first")
        if not float(most := off.nan_to_num(torch.inf, torch.inf).max()) < 1e-3:
            told = f"when idle steps have decayed its count and sum to {left:g} of what they were, a code is off by"
            return [finding("fading", f"{told} {float(most):.2g} of its length")]
    return []


def law_12_half(subject: Subject) -> Found:
    """An average goes on in half precision: layer.to(torch.bfloat16)."""
    ways = []
    for dtype in (torch.float32, torch.bfloat16):
        copy = apart(subject, average=True)[0]
        copy.layer.to(dtype)
        start = copy.table().float()
        for _ in range(20):
            copy.learn((start + 0.3)[None].to(dtype))
        ways.append(100 * float((copy.table().float() - start).mean() / 0.3))
    told = f"after layer.to(torch.bfloat16) codes go {ways[1]:.2g} % of the way in 20 steps, in float32 {ways[0]:.2g} %"
    return [finding("half", told)] if ways[1] < 0.7 * ways[0] else []


# --- law 13: a start from data ------------------------------------------------------------------------------------


def law_13_start(subject: Subject) -> Found:
    """The step after a start from data continues from it; a start with fewer points than codes leaves no zeros."""
    waiting, found, tables = subject.unstarted(), Found(), list[Tensor]()
    copy = waiting.fresh()
    copy.learn((3 + torch.randn(5, copy.dim)).repeat(13, 1)[None])
    if empty := int((copy.table().norm(dim=1) < 1e-6).sum()):
        found.append(finding("zero rows", f"started from 5 distinct vectors, {empty} of {copy.codes} rows are zero"))
    z = (10 + 8 * torch.randn(min(copy.codes, 32), copy.dim)).repeat(20, 1)
    z += 0.1 * torch.randn_like(z)
    for seed in range(2):
        copy = waiting.fresh()
        torch.manual_seed(seed)
        copy.learn(z[None])
        tables.append(copy.table())
    if not torch.equal(*tables):
        told = "started twice from the same vectors, under two seeds of PyTorch, the codes differ"
        found.append(finding("seed", told))
    copy.learn(z[None])
    jump = float((copy.table() - tables[1]).norm(dim=1).median())
    told = f"the step after the start moves half of the codes by {jump:.3g} or more, for clusters of width 0.1"
    return [*found, finding("forgotten start", told)] if jump > 1 else found


# --- law 14: revival ----------------------------------------------------------------------------------------------


def law_14_revival(subject: Subject) -> Found:
    """A revived code stays where it was put until vectors choose it, and an optimizer does not drag it on."""
    kept = [_revived(subject, remembers) for remembers in (False, True)[: 1 + subject.learnable]]
    return next((found for found in kept if isinstance(found[0], Finding)), kept[0])


def _revived(subject: Subject, remembers: bool) -> Found:
    copy, codes, idle, near = apart(subject)
    optimizer = Adam([copy.tensor], lr=0.1) if remembers else None
    copy.learn((codes[None] if remembers else near) + 0.1, optimizer)
    near, steps, put = near.repeat(1, -(-copy.codes // near.shape[1]), 1), 0, list[Tensor]()

    def on_a_vector() -> Tensor:  # Adam may have followed
        return idle & ((copy.rows - before).norm(dim=1) > 5) & ~_far(copy.rows, z[0], 0.2)

    before, z = copy.table(), near
    while not (revived := on_a_vector()).any():
        if steps == 40:
            with EachResult(lambda _: put.append(on_a_vector())):
                copy.learn(z, optimizer)
            reached = torch.stack(put).any(0)
            told = f"no idle code moves onto a vector in {steps} steps of {z.shape[1]}"
            if not reached.any():
                raise NotMeasured(told)
            told = f"{told}: within one step {int(reached.sum())} of {int(idle.sum())} are put onto vectors"
            return [finding("revival", f"{told}, and none is there when it ends")]
        before, z, steps = copy.table(), near + 2 * torch.randn_like(near), steps + 1
        copy.learn(z, optimizer)
    before, elsewhere = copy.table(), codes[~idle][:1].expand(1, 8, -1)
    copy.learn(elsewhere, optimizer)
    revived &= _far(copy.rows, elsewhere[0], 0.1)  # not once more
    moved = float((copy.rows - before)[revived].norm(dim=1).max()) if revived.any() else 0.0
    if moved > (1e-4 if remembers else 5):
        told = f"a revived code moves by {moved:.2g} in a step in which nothing chose it"
        return [finding("memory", f"with Adam {told}") if remembers else finding("revival", told)]
    return [Kept(law(14), f"idle codes are revived within {steps * z.shape[1]:,} vectors, and stay put")]


def law_14_batch_size(subject: Subject) -> Found:
    """Codes that are all chosen equally often are not revived, whatever the batch size."""
    replaced = []
    for parts in (1, 8):
        copy, codes, _, _ = apart(subject)
        chunks = torch.randperm(copy.codes).chunk(parts)
        for numbers in 4 * chunks:
            copy.learn((codes[numbers] + 0.01 * torch.randn(len(numbers), copy.dim))[None])
        replaced.append(float(((copy.table() - codes).norm(dim=1) > 5).double().mean()))
    told = f"in batches of {len(chunks[0])} vectors {percent(replaced[1])} of such codes are replaced, "
    told += f"in batches of {copy.codes} {percent(replaced[0])}"
    return [finding("threshold", told)] if any(replaced) else []


CHECKS = (
    *(
        law_11_forward,
        law_11_unstarted,
        law_11_once,
        law_11_step_between,
        law_12_average,
        law_12_first_step,
        law_12_idle,
        law_12_half,
    ),
    *(law_13_start, law_14_revival, law_14_batch_size),
)
