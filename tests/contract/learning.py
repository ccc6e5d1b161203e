"""Laws 12 to 15: how a codebook learns, starts and revives, and what it never learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import vqkit
from tests.contract import table
from tests.contract.law import Law, draws
from tests.contract.trained import (
    CODES,
    DIM,
    TOKENS,
    array,
    changed,
    close,
    fresh,
    objective,
    state,
    train,
    unrevived,
)
from tests.zoo import Case, vectors
from vqkit import reference


def is_ema(case: Case) -> bool:
    return case.update == "ema"


def learns(case: Case) -> bool:
    return case.update != "frozen"


def starts_from_data(case: Case) -> bool:
    return isinstance(case.make().start, vqkit.KMeans)


def revives(case: Case) -> bool:
    return isinstance(case.make().revival, vqkit.Reseed)


# --- law 12: the exponential moving average -----------------------------------------------------------------------


def with_decay(case: Case, decay: float) -> vqkit.Quantizer:
    vq = unrevived(case)
    vq.update = dataclasses.replace(vq.update, decay=decay)
    return vq


def law_12_lloyd(case: Case) -> None:
    vq = with_decay(case, 0.0)
    for seed in range(3):
        z = vectors(TOKENS, DIM, seed=seed)
        expected = reference.lloyd(array(z), array(vq.codebook))
        train(vq, z)
        close(vq.codebook, expected, "law 12: EMA with decay 0 is not Lloyd's step")


def law_12_reference(case: Case) -> None:
    """Sequences of batches of any sizes, empty ones among them, follow the recurrence of ``reference.py``."""

    @draws(12)
    @given(
        sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
        dim=st.integers(1, 12),
        codes=st.integers(1, 24),
        seed=st.integers(0, 2**20),
    )
    def follows(sizes: list[int], dim: int, codes: int, seed: int) -> None:
        vq = unrevived(case, dim=dim, codebook_size=codes, seed=seed)
        codebook, n = array(vq.codebook), array(vq.n)
        for draw, size in enumerate(sizes):
            z = vectors(size, dim, seed=seed + draw)
            indices = reference.nearest(array(z), array(vq.codebook))  # by the float32 codes: ties are near in between
            train(vq, z)
            if size:  # a step in which nothing was collected is none
                counts, sums = reference.statistics(array(z), codebook, indices)
                codebook, n = reference.ema(codebook, n, counts, sums, vq.update.decay)
            close(vq.codebook, codebook, "law 12: the codebook left the recurrence")
            close(vq.n, n, "law 12: n left the recurrence")

    follows()


def apart(vq: vqkit.Quantizer) -> tuple[Tensor, Tensor]:
    """Codes at -1 and 1 by turns in each direction, far enough apart; and vectors near the even ones alone."""
    codes = 10 * vectors(vq.codebook_size, vq.dim, seed=11)
    vq.set_codebook(codes)
    near = codes[::2].repeat(4, 1)
    return codes, near + 0.01 * vectors(*near.shape, seed=12)


def law_12_idle_rows(case: Case) -> None:
    """Codes that nothing chose keep their bits on the first step as after 1,200, and then learn as if new."""
    vq = with_decay(case, 0.9)
    codes, near = apart(vq)
    train(vq, near)
    assert torch.equal(vq.codebook[1::2], codes[1::2]), "law 12: idle codes moved on the first step"
    for _ in range(1200):
        vq.observe(near[:8])
        vqkit.step(vq)
    assert torch.equal(vq.codebook[1::2], codes[1::2]), "law 12: idle codes moved within 1,200 steps"
    z = codes[1::2] + 0.5
    train(vq, z)
    close(vq.codebook[1::2], z, "law 12: a code chosen after 1,200 idle steps is not where its vectors are")


def law_12_precision(case: Case) -> None:
    """An average in bfloat16 stalls, so what learns keeps float32, and follows to float64."""
    for low in (torch.float16, torch.bfloat16):
        model = nn.Sequential(nn.Linear(DIM, DIM), case.make()).to(low)
        assert model[0].weight.dtype == low
        kept = {model[1].codebook.dtype, model[1].n.dtype}
        assert kept == {torch.float32}, f"law 12: under {low} the codebook and n are {kept}"
        out = model(vectors(TOKENS, DIM).to(low))
        assert out.z_q.dtype == low, f"law 12: z_q is {out.z_q.dtype} for z in {low}"
        objective(out).backward()
        vqkit.step(model)
        counts = np.bincount(out.indices.numpy(), minlength=CODES)
        close(model[1].usage, counts.astype(float), f"law 12: usage under {low} is not the counts")
    vq = case.make().double()
    assert vq.codebook.dtype == vq.n.dtype == torch.float64, "law 12: .double() does not reach the codebook and n"
    train(vq, vectors(TOKENS, DIM).double())


# --- law 13: a start from data ------------------------------------------------------------------------------------


def clusters(seed: int = 0) -> Tensor:
    """240 vectors around 16 centres that lie well off the origin."""
    return 10 + (8 * vectors(CODES, DIM, seed=20)).repeat(15, 1) + 0.1 * vectors(15 * CODES, DIM, seed=seed)


def law_13_start(case: Case) -> None:
    """The start is a fixed point of Lloyd's step, n the sizes of the clusters; the next step continues from it."""
    vq, z = fresh(case, start=vqkit.KMeans(iterations=50)), clusters()
    assert not vq.codebook.any(), "law 13: a codebook that waits for data is not zero"
    train(vq, z)
    codes = vq.codebook.detach().clone()
    assert codes.any(1).all(), "law 13: k-means left rows of zeros"
    close(codes, reference.lloyd(array(z), array(codes)), "law 13: the start is no fixed point of k-means")
    counts = np.bincount(reference.nearest(array(z), array(codes)), minlength=CODES)
    close(vq.n, counts.astype(float), "law 13: n is not the sizes of the clusters")
    train(vq, z)
    close(vq.codebook, codes, "law 13: the step after the start did not continue from the clusters")
    train(vq, clusters(seed=1))
    moved = (vq.codebook - codes).norm(dim=1).max().item()
    assert moved < 0.5, f"law 13: a code moved by {moved:.2g} on new vectors of the same clusters"


def law_13_few_points(case: Case) -> None:
    """Five points for sixteen codes: each is a code, and the rest are near points, distinct and not zero."""
    vq, z = fresh(case), 3 + vectors(5, DIM, seed=4)
    train(vq, z.repeat(7, 1))
    codes = vq.codebook.detach().clone()
    distances = torch.cdist(z, codes)
    assert (distances.min(1).values == 0).all(), "law 13: a point is no code though there are codes enough"
    assert distances.min(0).values.max() < 1, "law 13: a code is far from every point"
    assert len(codes.unique(dim=0)) == CODES, "law 13: two codes are equal"
    for _ in range(3):
        train(vq, z.repeat(7, 1))
        close(vq.codebook, codes, "law 13: the step after the start did not continue from the points")


def law_13_deterministic(case: Case) -> None:
    """Given the seed, the start depends on which vectors there were, not on their order or on micro-batches."""
    z = vectors(1000, DIM, seed=6)
    shuffled = z[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]

    def started(seed: int, *batches: Tensor) -> dict[str, Tensor]:
        vq = fresh(case, seed=seed)
        train(vq, *batches)
        return state(vq)

    whole = started(0, z)
    for batches in ((shuffled,), shuffled.split(130), (z, z)):
        different = [name for name in changed(whole, started(0, *batches)) if len(batches) != 2 or name != "n"]
        assert not different, f"law 13: {different} after a start depend on the order or split of the vectors"
    assert changed(whole, started(1, z)), "law 13: the start does not depend on the seed"


# --- law 14: revival ----------------------------------------------------------------------------------------------


def dying(case: Case) -> tuple[vqkit.Quantizer, Tensor, Tensor]:
    """A quantizer of which only the even codes are chosen, its odd codes, and vectors it is trained on."""
    vq = fresh(case, start=vqkit.Normal())
    codes, near = apart(vq)
    return vq, codes[1::2].clone(), near


def law_14_age_in_tokens(case: Case) -> None:
    """Whatever the batch size, a code that nothing chooses moves once ``after * K`` tokens have passed."""
    for size in (8, 16, 40):
        vq, odd, near = dying(case)
        tokens, limit = 0, vq.revival.after * CODES
        while tokens + size < limit:
            train(vq, near.repeat(2, 1)[:size])
            tokens += size
            assert torch.equal(vq.codebook[1::2], odd), f"law 14: a code died at age {tokens} of {limit} tokens"
        train(vq, near.repeat(2, 1)[:size])
        same = (vq.codebook[1::2] == odd).all(1)
        assert not same.any(), f"law 14: a code of {limit} tokens lives on where a batch has {size}"


def law_14_revived_codes_live(case: Case) -> None:
    """A revived code is a vector of the step, is chosen, keeps its place while it is not, and learns as if new."""
    vq, _, near = dying(case)
    vq.set_codebook(vq.codebook.detach())
    wide = near + 2 * vectors(*near.shape, seed=13)
    for _ in range(int(vq.revival.after * CODES) // len(near) + 1):
        before = vq.codebook.detach().clone()
        train(vq, wide)
        revived = ((vq.codebook - before).norm(dim=1) > 5).nonzero()[:, 0]
        if len(revived):
            break
    assert len(revived), "law 14: no code was revived"
    place = vq.codebook[revived].detach().clone()
    assert (torch.cdist(place, wide).min(1).values == 0).all(), "law 14: a revived code is no vector of the step"
    assert not vq.n[revived].any(), "law 14: n of a revived code is that of its old place"
    assert torch.isin(revived, vq.encode(wide)).all(), "law 14: a revived code is not chosen by its own vector"
    elsewhere = vq.codebook[:1].detach().repeat(8, 1)
    train(vq, elsewhere)
    assert torch.equal(vq.codebook[revived], place), "law 14: the step after the revival overwrote it"
    expected = reference.lloyd(array(wide), array(vq.codebook))
    train(vq, wide)
    if is_ema(case):
        close(vq.codebook[revived], expected[revived], "law 14: a revived code learns from a past that is not its own")


def law_14_optimizer_memory(case: Case) -> None:
    """Adam remembers nothing of the old place: the row does not move until it is chosen again."""
    vq, odd, near = dying(case)
    optimizer = torch.optim.Adam(vq.parameters(), lr=0.1)
    objective(vq(torch.cat([near, odd + 0.1]))).backward()
    optimizer.step()
    vqkit.step(vq, optimizer)
    optimizer.zero_grad()
    before = vq.codebook.detach().clone()
    while (vq.codebook - before).norm(dim=1)[1::2].max() < 5:
        vq.idle[1::2] += 2 * int(vq.revival.after * CODES)
        objective(vq(near)).backward()
        optimizer.step()
        vqkit.step(vq, optimizer)
        optimizer.zero_grad()
    place = vq.codebook[1::2].detach().clone()
    for name in ("exp_avg", "exp_avg_sq"):
        memory = optimizer.state[vq.codebook][name]
        assert not memory[1::2].any(), f"law 14: {name} of a revived row is that of its old place"
        assert memory[::2].any(), f"law 14: {name} of rows that were not revived is gone"
    objective(vq(vq.codebook[:1].detach())).backward()
    optimizer.step()
    assert torch.equal(vq.codebook[1::2], place), "law 14: the optimizer moved a revived code by its old momentum"


# --- law 15: what is not finite -----------------------------------------------------------------------------------


def law_15_finite(case: Case) -> None:
    """A batch with NaN or infinity raises and leaves no trace: not in the state, nor in what was collected before."""
    good, following = vectors(TOKENS, DIM, seed=8), vectors(TOKENS, DIM, seed=9)
    clean = case.make()
    train(clean, good)
    train(clean, following)
    for fault in (torch.nan, torch.inf, -torch.inf):
        vq, bad = case.make(), good.clone()
        bad[3, 2] = fault
        objective(vq(good)).backward()
        raised = False
        try:
            objective(vq(bad.requires_grad_())).backward()
        except ValueError:
            raised = True
        vqkit.step(vq)
        poisoned = [name for name, tensor in state(vq).items() if not torch.isfinite(tensor).all()]
        assert not poisoned, f"law 15: one vector with {fault} put NaN or infinity into {poisoned}"
        assert raised, f"law 15: forward took a vector with {fault}"
        train(vq, following)
        left = changed(state(clean), state(vq))
        assert not left, f"law 15: a batch with {fault} left traces in {left}"


def _laws(checks: Iterable[Callable[[Case], None]], applies: Callable[[Case], bool]) -> tuple[Law, ...]:
    return tuple(Law(check, applies) for check in checks)


LAWS: tuple[Law, ...] = (
    *table.LAWS,
    *_laws((law_12_lloyd, law_12_reference, law_12_idle_rows), is_ema),
    Law(law_12_precision, learns),
    *_laws((law_13_start, law_13_few_points, law_13_deterministic), starts_from_data),
    *_laws((law_14_age_in_tokens, law_14_revived_codes_live), revives),
    Law(law_14_optimizer_memory, lambda case: revives(case) and case.update == "gradient"),
    Law(law_15_finite),
)
