"""The table "statistics are a gradient" beyond the contract: compilation, AMP, other orders, starts and revival."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vqkit
from tests.contract import table
from tests.contract.state import tracing
from tests.contract.table import Way, counted
from tests.contract.trained import CODES, DIM, TOKENS, Model, array, changed, close, objective, state
from tests.zoo import ZOO, Case, vectors
from vqkit import reference

UPDATES = {"gradient": vqkit.Gradient(), "ema": vqkit.EMA(0.9), "frozen": vqkit.Frozen()}


def ready(update: str) -> vqkit.VectorQuantizer:
    return vqkit.VectorQuantizer(DIM, CODES, update=UPDATES[update], start=vqkit.Normal(), seed=0)


# --- once -----------------------------------------------------------------------------------------------------------


def reentrant_checkpoint(model: Model, x: Tensor) -> None:
    """The old kind; it needs an input that requires grad (behind a frozen encoder it drops the whole graph)."""
    z_q, _, losses = checkpoint(model, x.clone().requires_grad_(), use_reentrant=True)
    (z_q.square().mean() + losses.total).backward()


def dynamic_graph(backend: str) -> Way:
    def compiled(model: Model, x: Tensor) -> None:
        """Two sizes in turn: the second is a graph of free size."""
        torch.compiler.reset()
        with tracing():
            training = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
            for part in x.split([24, 40]):
                objective(training(part)).backward()

    return compiled


def checkpointed_graph(model: Model, x: Tensor) -> None:
    torch.compiler.reset()
    with tracing():
        inner = torch.compile(model, fullgraph=True, backend="aot_eager")
        objective(checkpoint(inner, x, use_reentrant=False)).backward()


def by_parts_in_another_order(model: Model, x: Tensor) -> None:
    for part in reversed(x.split([1, 3, 20, 40])):
        objective(model(part)).backward()


def all_forwards_before_any_backward(model: Model, x: Tensor) -> None:
    for out in [model(part) for part in x.chunk(4)]:
        objective(out).backward()


def used_twice_in_one_graph(model: Model, x: Tensor) -> None:
    first, second = x.chunk(2)
    (objective(model(first)) + objective(model(second))).backward()


def among_passes_that_do_not_count(model: Model, x: Tensor) -> None:
    for way in table.NOTHING:
        way(model, x)
        model.train()
    model.zero_grad()
    objective(model(x)).backward()
    for way in table.NOTHING:
        way(model, x)
        model.train()


def observed(model: Model, x: Tensor) -> None:
    model.vq.observe(model.encoder(x).view(2, -1, DIM))


MORE_ONCE: tuple[Way, ...] = (
    *(reentrant_checkpoint, dynamic_graph("aot_eager"), checkpointed_graph, by_parts_in_another_order),
    *(all_forwards_before_any_backward, used_twice_in_one_graph, among_passes_that_do_not_count, observed),
)


@pytest.mark.parametrize("way", MORE_ONCE, ids=lambda way: way.__name__)
@pytest.mark.parametrize("update", UPDATES)
def test_counted_once(way: Way, update: str) -> None:
    counted(ready(update), way, 1)


def test_counted_once_through_inductor() -> None:
    """The compiler that users have, with generated C++; once, for it takes seconds."""
    counted(ready("ema"), dynamic_graph("inductor"), 1)


def test_counted_once_with_autocast() -> None:
    """The encoder gives bfloat16; what is learnt is the statistics of exactly those vectors, in float32."""
    for update in UPDATES:
        model, x = Model(ready(update)), vectors(TOKENS, DIM, seed=5)
        before, n = array(model.vq.codebook), array(model.vq.n)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder(x)
            out = model(x)
            loss = objective(out)
        loss.backward()
        vqkit.step(model)
        assert z.dtype == out.z_q.dtype == torch.bfloat16
        indices = reference.nearest(array(z), before)
        assert np.array_equal(out.indices, indices)
        counts, sums = reference.statistics(array(z), before, indices)
        assert np.array_equal(model.vq.usage, counts)
        if update == "ema":
            close(model.vq.codebook, reference.ema(before, n, counts, sums, 0.9)[0], "the codebook")


# --- what waits for the step: a start, a revival ------------------------------------------------------------------


def waiting(update: str) -> Model:
    """Samples fewer vectors than there are, so that which ones it samples shows."""
    start = vqkit.KMeans(vectors_per_code=2)
    return Model(vqkit.VectorQuantizer(DIM, CODES, update=UPDATES[update], start=start, seed=0))


def reviving(update: str) -> Model:
    """At the first step 48 tokens have passed since most codes were chosen."""
    vq = vqkit.VectorQuantizer(DIM, CODES, update=UPDATES[update], start=vqkit.Normal(), seed=0)
    vq.revival = vqkit.Reseed(after=3.0, at_most=6)
    vq._prepare()
    return Model(vq)


def after(model: Model, way: Way) -> dict[str, Tensor]:
    """The vectors reach the quantizer with equal bits in every way: the encoder is the identity."""
    with torch.no_grad():
        model.encoder.weight.copy_(torch.eye(DIM))
    far = vectors(DIM, seed=3) * 4
    way(model, far + 0.1 * vectors(TOKENS, DIM, seed=5))
    vqkit.step(model)
    return state(model)


REPEATED = (table.two_passes_over_one_forward,)
SAMPLED = (*table.ONCE, *MORE_ONCE[:-2], observed, *REPEATED)  # evaluation is an error before the start


@pytest.mark.parametrize("way", SAMPLED, ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", [waiting, reviving])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_the_sample_does_not_depend_on_the_way(update: str, make: Callable[[str], Model], way: Way) -> None:
    """Order, split and repetition: k-means starts from the same bits, and the same vectors revive the same codes."""
    expected, seen = after(make(update), table.plain), after(make(update), way)
    assert changed(state(make(update)), expected), "nothing was started or revived"
    different = set(changed(expected, seen))
    if way in REPEATED:
        different -= {"vq.n", "vq.usage", "vq.idle"}
    if make is reviving and update == "ema":  # codes that were not revived learn from sums, which are rounded
        different -= {"vq.codebook"}
        revived = (seen["vq.n"] == 0) & (expected["vq.n"] == 0)
        assert revived.sum() >= 6
        assert torch.equal(seen["vq.codebook"][revived], expected["vq.codebook"][revived])
    assert not different


@pytest.mark.parametrize("way", table.NOTHING, ids=lambda way: way.__name__)
def test_what_does_not_count_does_not_start(way: Way) -> None:
    model = waiting("ema")
    before = state(model)
    try:
        way(model, vectors(TOKENS, DIM))
    except ValueError as error:
        assert way is table.evaluation  # which needs a codebook, and says so
        assert "vqkit.start(model, batches)" in str(error)
    vqkit.step(model)
    assert not changed(before, state(model))


# --- quarters and wholes, drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_micro_batches_equal_the_whole(case: Case) -> None:
    """Over several steps: counts, idle and revived rows bit for bit, averages to rounding."""
    whole, parts = case.make(), case.make()
    generator = np.random.default_rng(0)
    for seed in range(6):
        x = vectors(TOKENS, DIM, seed=seed)
        cuts = np.sort(generator.integers(0, TOKENS + 1, 3))  # empty parts among them
        for vq, batches in ((whole, (x,)), (parts, torch.tensor_split(x, torch.as_tensor(cuts)))):
            for batch in batches:
                vq(batch.clone().requires_grad_()).losses.total.backward()
            vqkit.step(vq)
        assert not changed({"usage": whole.usage, "idle": whole.idle}, state(parts))
        close(parts.codebook, whole.codebook, "the codebook")
        close(parts.n, whole.n, "n")


def test_gradients_of_the_model_do_not_depend_on_collecting() -> None:
    """The same gradients in training mode, where statistics are collected, as in evaluation mode."""
    for update in UPDATES:
        gradients = []
        for training in (True, False):
            model = Model(ready(update)).train(training)
            objective(model(vectors(TOKENS, DIM, seed=5))).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_leaf_belongs_to_nobody() -> None:
    """Neither weight decay, nor clipping, nor a checkpoint of the model meets what is collected."""
    model = Model(ready("ema"))
    objective(model(vectors(TOKENS, DIM))).backward()
    seen = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert id(model.vq.collector.statistics) not in seen
    assert {name for name in model.state_dict() if name.startswith("vq.")} == {
        f"vq.{name}" for name in ("codebook", "n", "usage", "idle", "seed", "steps", "started")
    }
    collected = model.vq.collector.statistics.grad.clone()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-6)
    torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.5).step()
    model.zero_grad()
    assert torch.equal(model.vq.collector.statistics.grad, collected)
