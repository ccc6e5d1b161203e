"""Laws 1 to 4, 15, 16 and 20: which code is chosen, what comes out, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.functional import nearest_codes
from vqkit.gradients.audit.findings import Found, finding, percent
from vqkit.gradients.audit.report import Kept, NotMeasured, Severity, law
from vqkit.gradients.audit.subject import EachResult, Subject, alone, as_indices, state_of


def _placed(subject: Subject, offset: float = 0.0, spread: float = 1.0, train: bool = False) -> tuple[Subject, Tensor]:
    """A copy that holds ``offset + spread N(0, 1)`` codes, where they were found, and 4 x 64 vectors drawn alike."""
    copy = subject.fresh(train)
    if copy.codebook is not None:
        copy.place(offset + spread * torch.randn(subject.codes, subject.dim))
    return copy, offset + spread * torch.randn(4, 64, subject.dim)


def _share(wrong: Tensor) -> float:
    return float(wrong.double().mean())


# --- law 1 --------------------------------------------------------------------------------------------------------


def _off(subject: Subject, mode: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, str]:
    """By how much the entries of z_q are off the codes that the indices name, before or after the layer learnt."""
    copy, z = _placed(subject.of_rows(), train=mode == "training")
    copy.layer.to(dtype)
    before, z = copy.table(), z.to(dtype)
    out = copy(z.clone().requires_grad_())
    z_q = out.z_q.detach()
    rows = [table[out.indices].to(dtype) for table in (before, copy.rows)]
    q = min(rows, key=lambda row: float((row - z_q).abs().sum()))
    return (z_q.float() - q.float()).abs(), ": z_q is 2 z - q" if (z_q - 2 * z + q).abs().max() < 1e-3 else ""


def law_01_rows(subject: Subject) -> Found:
    """z_q is bit for bit rows of the codebook, in training and in evaluation, in float32 and in bfloat16."""
    inexact, worst = {}, 0.0
    for mode in ("training", "evaluation"):
        error, slip = _off(subject, mode)
        inexact[mode] = _share(error != 0)
        if error.mean() > 1e-3:
            told = (
                f"in {mode} an entry of z_q is {error.mean():.2g} from its code on average, for codes of scale 1{slip}"
            )
            return [finding("no rows", told)]
    try:
        worst = float(_off(subject, "training", torch.bfloat16)[0].max())
        half = f"in bfloat16 z_q is up to {worst:.2g} from its code" if worst else "in bfloat16 too"
    except (RuntimeError, ValueError) as error:
        half = f"in bfloat16 the layer raises {type(error).__name__}"
    mode, most = max(inexact.items(), key=lambda pair: pair[1])
    if not worst and not most:
        return [Kept(law(1), f"z_q is bit for bit a row of the codebook in float32, {half}")]
    bits = f"in float32 {percent(most)} of its entries differ in their last bits, in {mode}"
    return [finding("rounded rows", f"{half}; {bits}")]


# --- laws 2 and 3 -------------------------------------------------------------------------------------------------


def _excess(z: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
    """By how much each chosen code is farther than the nearest, in units of the nearest's |z - e|^2, in float64."""
    z, table = z.detach().double().reshape(-1, table.shape[1]), table.double()
    best = (z - table[nearest_codes(z, table)]).square().sum(1)
    return ((z - table[chosen.flatten()]).square().sum(1) - best) / best.clamp(min=1e-300)


def law_02_nearest(subject: Subject) -> Found:
    """The nearest code is chosen, by float64: far from the origin, below 1e-4, in bfloat16; of equals the first."""
    copy, z = _placed(subject.of_rows())
    chosen, table = copy(z).indices, copy.table()
    excess = _excess(z, table, chosen)
    if excess.max() > 1e-5:
        copy.place(F.normalize(table, dim=1))
        if _share(copy(z).indices == (z @ copy.rows.T).argmax(-1)) > 0.99:
            raise NotMeasured("the layer chooses by the angle, not by the distance")
        told = f"{percent(_share(excess > 1e-5))} of the codes are not the nearest"
        return [finding("not nearest", f"{told}; the worst is {1 + excess.max():.3g} times as far, squared")]
    autocast: Callable[[], AbstractContextManager] = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    found: Found = []
    for name, offset, spread, dtype, context in (
        ("1000 standard deviations from the origin", 1e3, 1, torch.float32, nullcontext),
        ("where vectors and codes are closer than 1e-4", 0, 1e-5 / math.sqrt(subject.dim), torch.float32, nullcontext),
        ("with the layer and z in bfloat16", 0, 1, torch.bfloat16, nullcontext),
        ("under autocast on the CPU", 0, 1, torch.float32, autocast),
    ):
        copy, z = _placed(subject, offset, spread)
        copy.layer.to(dtype)
        try:
            with context():
                chosen = copy(z.to(dtype)).indices
        except RuntimeError:  # it does not take this precision
            continue
        if wrong := _share(_excess(z.to(dtype), copy.table(), chosen) > 1e-9):
            found.append(finding(name, f"{percent(wrong)} of the codes are not the nearest, {name}"))
    copy, z = _placed(subject)
    half = subject.codes // 2
    copy.place(copy.table()[: max(half, 1)].repeat(3, 1)[: subject.codes])
    if half and (later := _share(copy(z).indices >= half)):
        found.append(finding("ties", f"of equal codes a later one is chosen for {percent(later)} of the vectors"))
    return found


def law_03_invariance(subject: Subject) -> Found:
    """A vector's code does not change with the other vectors, the split or the order of the batch."""
    copy, z = _placed(subject)
    before = copy.fresh(train=False)
    copy(z)
    if any(not torch.equal(a, b) for a, b in zip(*(state_of(s.layer).values() for s in (before, copy)), strict=True)):
        raise NotMeasured("evaluation changes the layer")
    if (stay := alone(copy, z)) < 1:
        return [finding("mixed", f"one vector changed, and with it the outputs of {percent(1 - stay)} of the others")]
    conditions: dict[str, tuple[Severity, float]] = {"for ordinary vectors": ("fault", 0.0)}
    if subject.codebook is not None:
        conditions["1000 standard deviations from the origin"] = "hazard", 1e3
    for name, (severity, offset) in conditions.items():
        copy, z = _placed(subject, offset)
        whole = copy(z := z[:1]).indices
        others = {f"a split into {n}s": torch.cat([copy(x).indices for x in z.split(n, 1)], 1) for n in (1, 32)}
        others["the reversed order"] = copy(z.flip(1)).indices.flip(1)
        how = max(others, key=lambda name: _share(others[name] != whole))
        if most := _share(others[how] != whole):
            wrong = [_share(_excess(z, copy.table(), chosen) > 1e-9) for chosen in (whole, others[how])]
            rank = 1 if min(wrong) < max(wrong) / 10 else None  # one of the two is right: law 2 is a consequence
            return [finding("split", f"{how} changes {percent(most)} of the indices, {name}", severity, rank)]
    return []


# --- law 4 --------------------------------------------------------------------------------------------------------


def law_04_round_trip(subject: Subject) -> Found:
    """Decoded indices are z_q; codes encode to their own indices; padding and indices out of range are minded."""
    copy, z = _placed(subject.of_rows())
    out, table = copy(z), copy.table()
    found: Found = []
    if (off := (copy.decode(out.indices) - out.z_q).abs().max().item()) > 1e-3:
        told = f"decoded indices are up to {off:.2g} from z_q, for codes of scale 1"
        found.append(finding("decodes otherwise", told))
    if copy.encoder is not None:
        others = _share(copy.encode(table[None]) != torch.arange(len(table))), _share(copy.encode(z) != out.indices)
        if any(others):
            told = f"not so for {percent(others[0])} of the codes, and for {percent(others[1])} of 256 vectors"
            found.append(finding("encodes otherwise", told))
    for index, what in ((-1, "the padding index -1"), (len(table), f"index {len(table)} of {len(table)} codes")):
        try:
            decoded = copy.decode(torch.tensor([[index, 0]]))[0, 0]
        except (IndexError, RuntimeError, ValueError):
            continue
        if index >= 0 or bool(decoded.any()):
            near = int((table - decoded).square().sum(1).argmin())
            found.append(finding("decodes anything", f"{what} decodes to code {near}, without an error"))
    return found or [Kept(law(4), f"{copy.decoder}(indices) is z_q to rounding; no index out of range passes")]


# --- laws 15 and 16 -----------------------------------------------------------------------------------------------


def law_15_poison(subject: Subject) -> Found:
    """NaN or infinity in z is an error, and never enters the codebook or a statistic."""
    found: Found = []
    for fault in (math.nan, math.inf):
        copy, z = subject.fresh(), torch.randn(4, 64, subject.dim)
        z[1, 2, 0] = fault
        try:
            out = copy.learn(z)
        except (ValueError, RuntimeError):
            continue
        before, after = state_of(subject.layer), state_of(copy.layer)
        lost = {n: _share(~torch.isfinite(after[n])) for n, tensor in before.items() if torch.isfinite(tensor).all()}
        if told := ", ".join(f"{percent(share)} of {name}" for name, share in lost.items() if share):
            return [finding("poison", f"one {fault} in z, one training step: {told} is not finite")]
        loss = "no loss" if out.total is None else f"the loss is {out.total.item():.3g}"
        told = f"{fault} in one of 256 vectors: no error, index {int(out.indices[1, 2])}, {loss}"
        found = found or [finding("accepted", told)]
    return found


def law_16_empty(subject: Subject) -> Found:
    """An empty batch, and one that is all masked, has a finite loss and moves no code."""
    found: Found = []
    batches: dict[str, tuple[Tensor, Tensor | None]] = {"an empty batch": (torch.zeros(2, 0, subject.dim), None)}
    if subject.masks:
        batches["a batch that is all masked"] = torch.randn(2, 3, subject.dim), torch.zeros(2, 3, dtype=torch.bool)
    for name, (z, mask) in batches.items():
        copy, told = subject.fresh(), ""
        try:
            total = copy.learn(z, mask=mask).total
            told = "" if total is None or math.isfinite(total.item()) else f"the loss is {total.item():.3g}"
        except Exception as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        if not told and copy.codebook is not None and not torch.allclose(copy.rows, subject.rows, rtol=1e-5):
            told = f"a code moves by {float((copy.rows - subject.rows).abs().max()):.3g}"
        found += [finding("empty", f"{name}: {told}")] if told else []
    return found


def law_16_masks(subject: Subject) -> Found:
    """The loss of a masked batch is that of the vectors that count alone."""
    if not subject.masks:
        raise NotMeasured("the layer takes no mask")
    (copy, z), mask = _placed(subject, train=True), torch.rand(4, 64) < 0.5
    masked = copy.fresh()(torch.where(mask[..., None], z, 30.0), mask).total
    counted = copy.fresh()(z[mask][None]).total
    if masked is None or counted is None or torch.allclose(masked, counted, rtol=1e-3):
        return []
    ratio = (masked / counted).item()
    return [
        finding("padding", f"with half of the vectors masked the loss is {ratio:.3g} times that of the others alone")
    ]


# --- law 20 -------------------------------------------------------------------------------------------------------


def law_20_memory(subject: Subject) -> Found:
    """No operator makes a tensor of N x K elements: no distances all at once, no one-hot rows."""
    codes, dim = subject.codes, subject.dim
    if codes < 16 or codes == dim:
        raise NotMeasured(f"needs 16 codes or more, and not as many as dimensions: K is {codes}, D {dim}")

    def look(leaf: Tensor) -> None:
        if leaf.numel() >= n * codes and leaf.numel() != n * dim:
            sizes.append(leaf.numel())
            hot.append(leaf.numel() == n * codes and as_indices(leaf.reshape(n, -1), n) is not None)

    for n in (61, max(61, min(2**17, 2**20 // codes) + 1)):  # a search in chunks may hold 2^20 scores
        (copy, _), sizes, hot = _placed(subject, train=True), list[int](), list[bool]()
        with EachResult(look):
            copy(torch.randn(1, n, dim))
        if max(sizes, default=0) >= n * codes * min(dim, 8):
            break  # N x K x D: no need to fill the memory with it
    told = f"for N = {n:,} and K = {codes:,}"
    if not sizes:
        return [Kept(law(20), f"{told} no operator makes N K elements")]
    told += f" {len(sizes)} tensors of N K elements or more are made, the largest of {max(sizes):,}"
    return [finding("n x k", f"{told}; {sum(hot) or 'none'} of them one-hot")]


CHECKS = (
    *(law_01_rows, law_02_nearest, law_03_invariance, law_04_round_trip, law_15_poison),
    *(law_16_empty, law_16_masks, law_20_memory),
)
