"""Laws 1 to 4, 15 (of forward), 16 and 20: which code is chosen, what comes out, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import vqkit
from tests.contract.law import Law, draws, same_bits
from tests.contract.state import tracing
from tests.native.paths import threads
from tests.zoo import Case, vectors
from vqkit import reference
from vqkit.functional import chunked, native

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
seeds = st.integers(0, 10**6)


# --- law 1 --------------------------------------------------------------------------------------------------------


def law_01_rows(case: Case) -> None:
    """z_q is bit for bit rows of the codebook, in z's dtype, in training too."""

    @draws(12)
    @given(seeds, st.lists(st.integers(1, 5), max_size=3), st.sampled_from(DTYPES), st.sampled_from([1e-3, 1.0, 1e3]))
    def rows(seed: int, shape: list[int], dtype: torch.dtype, scale: float) -> None:
        vq = case.holding(vectors(7, 3, seed=seed))
        z = (scale * vectors(*shape, 3, seed=seed + 1)).to(dtype)
        for training in (True, False):
            z_q, indices, _ = vq.train(training)(z.clone().requires_grad_())
            expected = vq.codebook.detach()[indices].to(dtype)
            assert same_bits(z_q, expected), f"law 1: z_q is off its code by {_gap(z_q, expected)} for {dtype} input"

    rows()


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().double().abs().max()) if a.shape == b.shape else float("nan")


# --- law 2 --------------------------------------------------------------------------------------------------------


@contextmanager
def medium_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _grid(seed: int, n: int, dim: int) -> Tensor:
    return torch.randint(-1, 2, (n, dim), generator=torch.Generator().manual_seed(seed)).float()


def _permuted(seed: int, codes: int, dim: int) -> Tensor:
    """One row in many orders: from (c, ..., c) all are equally far, but sums in order of d round differently."""
    generator, row = torch.Generator().manual_seed(seed), vectors(dim, seed=seed + 1)
    return torch.stack([row[torch.randperm(dim, generator=generator)] for _ in range(codes)])


# name -> vectors and codes, from a seed, n, K and dim
SITUATIONS: dict[str, Callable[[int, int, int, int], tuple[Tensor, Tensor]]] = {
    "ordinary data": lambda s, n, k, d: (vectors(n, d, seed=s), vectors(k, d, seed=s + 1)),
    "one code": lambda s, n, k, d: (vectors(n, d, seed=s), vectors(1, d, seed=s + 1)),
    "data 1e4 sd from the origin": lambda s, n, k, d: (1e4 + vectors(n, d, seed=s), 1e4 + vectors(k, d, seed=s + 1)),
    "data 1e4 sd from the codes": lambda s, n, k, d: (1e4 + vectors(n, d, seed=s), vectors(k, d, seed=s + 1)),
    "codes 1e-5 apart": lambda s, n, k, d: (vectors(n, d, seed=s), 1.0 + 1e-5 * vectors(k, d, seed=s + 1)),
    "data on the codes": lambda s, n, k, d: (vectors(k, d, seed=s) * 1e-5, vectors(k, d, seed=s).flip(0) * 1e-5),
    "ties on a grid": lambda s, n, k, d: (_grid(s, n, d) / 2, _grid(s + 1, k, d)),
    "duplicate codes": lambda s, n, k, d: (vectors(n, d, seed=s), vectors(k, d, seed=s + 1).repeat(3, 1)),
    "all codes equal": lambda s, n, k, d: (vectors(n, d, seed=s), torch.ones(k, d) / 3),
    "codes that rounding alone parts": lambda s, n, k, d: (vectors(n, 1, seed=s).repeat(1, d), _permuted(s, k, d)),
    "near the largest number": lambda s, n, k, d: (1e37 * vectors(n, d, seed=s), 5e37 * vectors(k, d, seed=s + 1)),
    "squares that underflow": lambda s, n, k, d: (1e-22 * vectors(n, d, seed=s), 1e-22 * vectors(k, d, seed=s + 1)),
    "denormal numbers": lambda s, n, k, d: (1e-40 * vectors(n, d, seed=s), 1e-40 * vectors(k, d, seed=s + 1)),
    "both scales": lambda s, n, k, d: (
        torch.cat([1e-30 * vectors(n, d, seed=s), 1e30 * vectors(n, d, seed=s)]),
        torch.cat([1e-30 * vectors(k, d, seed=s + 1), 1e30 * vectors(k, d, seed=s + 2)]),
    ),
    "bfloat16 input": lambda s, n, k, d: (vectors(n, d, seed=s).bfloat16(), vectors(k, d, seed=s + 1)),
    "float16 input off the origin": lambda s, n, k, d: (
        (100 + vectors(n, d, seed=s)).half(),
        100 + vectors(k, d, seed=s + 1),
    ),
    "float64 input 1e-12 apart": lambda s, n, k, d: (
        1 + 1e-12 * vectors(n, d, seed=s, dtype=torch.float64),
        1 + 1e-12 * vectors(k, d, seed=s + 1, dtype=torch.float64),
    ),
}
CIRCUMSTANCES: dict[str, Callable] = {
    "plainly": nullcontext,
    "under autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "at medium precision": medium_precision,
}


def law_02_nearest(case: Case) -> None:
    """The chosen code is the argmin of the float64 sum in order of d; of equal sums the lowest index."""

    @draws(4)
    @given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
    def nearest(seed: int, n: int, codes: int, dim: int) -> None:
        for situation, draw in SITUATIONS.items():
            z, codebook = draw(seed, n, codes, dim)
            vq = case.holding(codebook)
            expected = reference.nearest(z.double().numpy(), codebook.double().numpy())
            for circumstance, context in CIRCUMSTANCES.items():
                with context():
                    results = (vq.encode(z), vq(z).indices)
                for indices in results:
                    wrong = int((indices.numpy() != expected).sum())
                    assert wrong == 0, f"law 2: {wrong} of {len(z)} codes are wrong, {situation}, {circumstance}"

    nearest()


# --- law 3 --------------------------------------------------------------------------------------------------------


@contextmanager
def _in_chunks(scores: int) -> Iterator[None]:
    """The search in PyTorch, where the C++ library would be asked."""
    with mock.patch.object(native, "instructions", lambda: None), mock.patch.object(chunked, "_CHUNK_CPU", scores):
        yield


def law_03_invariance(case: Case) -> None:
    """Which search runs, chunk size, threads, batch split and order never change an index."""

    @draws(4)
    @given(seeds, st.integers(1, 24))
    def invariance(seed: int, dim: int) -> None:
        for offset, spread in ((0.0, 1.0), (1e3, 1.0), (1.0, 1e-6)):
            z = offset + spread * vectors(42, dim, seed=seed)
            vq = case.holding(offset + spread * vectors(20, dim, seed=seed + 1).repeat(2, 1))
            whole = vq.encode(z)
            order = torch.randperm(42, generator=torch.Generator().manual_seed(seed))
            others = {"order": vq.encode(z[order])[order.argsort()], "shape": vq.encode(z.view(3, 14, dim)).flatten()}
            for size in (1, 5, 32):
                others[f"split {size}"] = torch.cat([vq.encode(part) for part in z.split(size)])
                with _in_chunks(size * 40):
                    others[f"chunk {size}"] = vq.encode(z)
                    others[f"chunk {size} in training"] = vq(z).indices
            for count in (1, 2):
                with threads(count):
                    others[f"threads {count}"] = vq.encode(z)
            for name, indices in others.items():
                assert torch.equal(indices, whole), f"law 3: {name} changed {int((indices != whole).sum())} of 42 codes"

    invariance()


# --- law 4 --------------------------------------------------------------------------------------------------------


def law_04_round_trip(case: Case) -> None:
    """decode(encode(z)) is the evaluation forward; encode(decode(i)) is i; -1 is zeros; the rest is an error."""

    @draws(10)
    @given(seeds, st.lists(st.integers(0, 4), max_size=3), st.integers(1, 20), st.sampled_from(DTYPES))
    def round_trip(seed: int, shape: list[int], codes: int, dtype: torch.dtype) -> None:
        vq = case.holding(vectors(codes, 4, seed=seed)).eval()
        z = vectors(*shape, 4, seed=seed + 1).to(dtype)
        indices = vq.encode(z)
        assert indices.dtype == torch.int64, f"law 4: indices are {indices.dtype}, not int64"
        assert same_bits(vq.decode(indices, dtype=dtype), vq(z).z_q), "law 4: decode(encode(z)) is not forward(z)"
        assert vq.decode(indices).dtype == vq.codebook.dtype, "law 4: decode is not in the codebook's dtype"
        every = torch.arange(codes)
        assert torch.equal(vq.encode(vq.decode(every)), every), "law 4: encode(decode(i)) is not i"
        assert torch.equal(vq.encode(vq.decode(every.int())), every), "law 4: int32 indices decode otherwise"
        some = torch.tensor([[-1, 0], [codes - 1, -1]])
        decoded = vq.decode(some)
        assert not decoded[some < 0].any(), "law 4: the padding index -1 does not decode to zeros"
        assert same_bits(decoded[some >= 0], vq.decode(some[some >= 0])), "law 4: padding changes its neighbours"
        for outside in (-2, codes, codes + 100):
            refusal = _refusal(vq.decode, torch.tensor([0, outside]))
            assert "indices" in refusal, f"law 4: index {outside} of {codes} codes is no error that names indices"

    round_trip()


def _refusal(call: Callable, *args: object, **kwargs: object) -> str:
    """The message of the ValueError that a call raises; empty where it raises none, or another error."""
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    except (IndexError, RuntimeError):
        return ""
    return ""


# --- law 15, as far as forward is concerned -----------------------------------------------------------------------


def law_15_faults(case: Case) -> None:
    """On the CPU, NaN or infinity in z is a ValueError that names z, compiled too; masked positions may hold them."""
    vq, z = case.make(), vectors(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    torch.compiler.reset()
    compiled = torch.compile(case.make(), fullgraph=True, backend="aot_eager")
    for fault in (float("nan"), float("inf"), -float("inf")):
        faulty = z.clone()
        faulty[1, 3, 2] = fault
        calls = {"forward": vq, "encode": vq.encode, "evaluation": case.make().eval(), "a compiled forward": compiled}
        for name, call in calls.items():
            with tracing():
                refusal = _refusal(call, faulty)
            assert refusal.startswith("z "), f"law 15: {name} accepts {fault} without naming z"
        result = vq(faulty, mask)
        assert torch.isfinite(result.loss), f"law 15: a masked {fault} reaches the loss"
        assert torch.isfinite(result.z_q).all(), f"law 15: a masked {fault} reaches z_q"
    only = case.holding(torch.ones(1, 8))
    assert _refusal(only, faulty).startswith("z "), "law 15: with one code nothing is compared, and infinity passes"


# --- law 16 -------------------------------------------------------------------------------------------------------


def law_16_masks(case: Case) -> None:
    """Empty and all-masked batches: zero loss, no update; masked positions touch no loss, statistic or gradient."""
    for shape in ((0,), (3, 0), (2, 4)):
        vq, z = case.make(), vectors(*shape, 8).requires_grad_()
        before = {name: value.clone() for name, value in vq.state_dict().items()}
        z_q, indices, losses = vq(z, torch.zeros(shape, dtype=torch.bool))
        (z_q.sum() + losses.total).backward()
        vqkit.step(vq)
        assert all(loss.item() == 0 for loss in losses), f"law 16: the losses of an empty batch {shape} are {losses}"
        assert z.grad is not None, f"law 16: an empty batch {shape} gives no gradient"
        assert not z.grad.any(), f"law 16: an empty batch {shape} gives a gradient that is not zero"
        assert not z_q.any(), f"law 16: an all-masked batch {shape} gives values that are not zero"
        assert bool((indices == -1).all()), f"law 16: an all-masked batch {shape} gives indices that are not -1"
        for name, value in vq.state_dict().items():
            assert same_bits(value, before[name]), f"law 16: an empty batch {shape} changes {name}"
        if not z.numel():
            assert vq(z).loss.item() == 0, f"law 16: without a mask the loss of an empty batch {shape} is not zero"

    @draws(8)
    @given(seeds, st.integers(1, 30))
    def masks(seed: int, n: int) -> None:
        mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6
        z = vectors(n, 8, seed=seed)
        alone = _trained(case, z[mask])
        for name, filling in {"NaN": float("nan"), "infinity": float("inf"), "0": 0.0, "1e30": 1e30}.items():
            padded = _trained(case, torch.where(mask[:, None], z, filling), mask)
            told = f"changes with {name} in masked positions"
            for key, value in padded.items():
                counted = value[mask] if key in ("z_q", "indices", "gradient") else value
                close = torch.allclose(counted.double(), alone[key].double(), rtol=1e-5, atol=1e-6)
                assert close, f"law 16: {key} {told}"
            for key, rest in (("z_q", 0), ("gradient", 0), ("indices", -1)):
                assert bool((padded[key][~mask] == rest).all()), f"law 16: {key} of masked positions is not {rest}"

    masks()


def _trained(case: Case, z: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Everything that one training step on z gives and changes."""
    vq, z = case.make(), z.clone().requires_grad_()
    z_q, indices, losses = vq(z, mask)
    (3 * z_q.sum() + losses.total).backward()
    vqkit.step(vq)
    own = {f"the gradient of {name}": p.grad for name, p in vq.named_parameters() if p.grad is not None}
    found = {"z_q": z_q, "indices": indices, "gradient": z.grad, **losses._asdict(), **own, **vq.state_dict()}
    return {name: value.detach() for name, value in found.items()}


# --- law 20 -------------------------------------------------------------------------------------------------------


def law_20_memory(case: Case) -> None:
    """Forward, backward, encode and decode stay below N x K bytes: no distances, no one-hot, not even of bytes."""
    n, codes, dim = 8192, 4096, 4
    vq, z = case.make(dim=dim, codebook_size=codes), vectors(n, dim).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        z_q, _, losses = vq(z)
        (z_q.sum() + losses.total).backward()
        vq.decode(vq.encode(z))
    changes = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = int(np.cumsum(changes).max())
    assert peak < n * codes, f"law 20: {peak / 2**20:.0f} MiB in use; N x K bytes are {n * codes / 2**20:.0f} MiB"


LAWS = (
    Law(law_01_rows),
    Law(law_02_nearest),
    Law(law_03_invariance),
    Law(law_04_round_trip),
    Law(law_15_faults),
    Law(law_16_masks),
    Law(law_20_memory),
)
