"""Law 18 beyond the contract: what only goes wrong between ranks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import vqkit
from tests.contract.trained import CODES, DIM, TOKENS, Model, changed, objective, state, train
from tests.ranks import RANKS, on_two_ranks
from tests.zoo import vectors

Join = Callable[[], None]
UPDATES = {"gradient": vqkit.Gradient(), "ema": vqkit.EMA()}


def share(rank: int, seed: int = 0) -> Tensor:
    return vectors(RANKS * TOKENS, DIM, seed=seed).chunk(RANKS)[rank]


def agree(answers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    assert not changed(*answers), f"ranks differ in {changed(*answers)}"
    return answers[0]


def _start_and_revive(rank: int, join: Join, update: str, seed: int | None) -> list[dict[str, Tensor]]:
    """The state after each step. As users do it: ranks draw different numbers, DDP hands out rank 0's when it wraps."""
    torch.manual_seed(rank)
    vq = vqkit.VectorQuantizer(
        *(DIM, CODES),
        **{"update": UPDATES[update], "start": vqkit.KMeans(vectors_per_code=2), "revival": vqkit.Reseed(after=4.0)},
        seed=seed,
    )
    model = Model(vq)
    join()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    vqkit.attach(optimizer, model)
    seen = []
    for step in range(6):
        optimizer.zero_grad()
        objective(parallel(share(rank, seed=step) + 5 * step)).backward()  # codes fall idle as the data move on
        optimizer.step()
        seen.append(state(model))
    return seen


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("seed", [0, None])
def test_ranks_start_and_revive_alike(update: str, seed: int | None) -> None:
    seen = [agree(list(both)) for both in zip(*on_two_ranks(_start_and_revive, update, seed), strict=True)]
    assert seen[0]["vq.started"]
    places = [step["vq.codebook"] for step in seen[1:]]
    moved = [(later - earlier).norm(dim=1).max() for earlier, later in pairwise(places)]
    assert max(moved) > 5, "no code was revived"


def _start_before_training(rank: int, join: Join) -> dict[str, Tensor]:
    model = Model(vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.KMeans(vectors_per_code=4), seed=0))
    join()
    vqkit.start(model, [share(rank), share(rank, seed=1)])
    return state(model)


def test_start_takes_the_batches_of_all_ranks() -> None:
    together = agree(on_two_ranks(_start_before_training))
    alone = Model(vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.KMeans(vectors_per_code=4), seed=0))
    with torch.no_grad():
        encoded = [torch.cat([alone.encoder(share(rank, seed)) for rank in range(RANKS)]) for seed in range(2)]
    vqkit.start(alone.vq, encoded)
    assert torch.equal(together["vq.codebook"], alone.vq.codebook)
    assert together["vq.n"].sum() == RANKS * TOKENS  # vectors in a step of all ranks


def _one_rank_collects(rank: int, join: Join, waiting: bool) -> dict[str, Tensor]:
    start = vqkit.KMeans() if waiting else vqkit.Normal()
    vq = vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=start, seed=0)
    join()
    if rank == 1:
        vq.observe(share(1))
    vqkit.step(vq)
    return state(vq)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_rank_without_any_backward_learns_with_the_others(waiting: bool) -> None:
    learnt = agree(on_two_ranks(_one_rank_collects, waiting))
    assert learnt["n"].sum() > 0
    assert learnt["steps"] == 1


def _nothing(rank: int, join: Join) -> bool:
    vq = vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.KMeans(), seed=0)
    join()
    before = state(vq)
    for _ in range(3):
        vqkit.step(vq)
    return not changed(before, state(vq))


def test_a_step_with_nothing_on_any_rank_changes_nothing() -> None:
    assert on_two_ranks(_nothing) == [True, True]


def _group_of_its_own(rank: int, join: Join, through: str) -> dict[str, Tensor]:
    """Each rank alone in a group: with it as an argument nothing crosses over."""
    vq = vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.Normal(), seed=0)
    join()
    groups = [dist.new_group([member]) for member in range(RANKS)]
    model = Model(vq)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if through == "attach":
        vqkit.attach(optimizer, model, groups[rank])
    model.vq(share(rank)).losses.total.backward()
    optimizer.step()
    if through == "step":
        vqkit.step(model, group=groups[rank])
    return state(vq)


@pytest.mark.parametrize("through", ["step", "attach"])
def test_group_is_an_argument(through: str) -> None:
    for rank, learnt in enumerate(on_two_ranks(_group_of_its_own, through)):
        vq = vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.Normal(), seed=0)
        train(vq, share(rank))
        assert not changed(state(vq), learnt)


def _several_quantizers(rank: int, join: Join) -> dict[str, Tensor]:
    """Of different sizes, precisions and kinds: one collective carries them all."""
    layers = torch.nn.ModuleList(
        [
            vqkit.VectorQuantizer(DIM, 5, update=vqkit.EMA(), start=vqkit.KMeans(), seed=0),
            vqkit.VectorQuantizer(3, CODES, update=vqkit.EMA(), start=vqkit.Normal(), seed=1).double(),
            vqkit.VectorQuantizer(DIM, 7, revival=vqkit.Reseed(after=0.1), seed=2),
            vqkit.VectorQuantizer(DIM, 4, update=vqkit.Frozen(), seed=3),
        ]
    )
    join()
    for vq in layers:
        vq.observe(share(rank)[:, : vq.dim].to(vq.codebook.dtype))
    vqkit.step(layers)
    return state(layers)


def test_several_quantizers_share_one_collective() -> None:
    learnt = agree(on_two_ranks(_several_quantizers))
    for index, tokens in ((1, RANKS * TOKENS), (2, RANKS * TOKENS), (3, RANKS * TOKENS)):
        assert learnt[f"{index}.usage"].sum() == tokens
    assert learnt["0.n"].sum() == RANKS * TOKENS


def _faulty_on_one(rank: int, join: Join) -> list[str]:
    """What an accelerator, which does not raise, would have counted on rank 1."""
    import warnings

    vq = vqkit.VectorQuantizer(DIM, CODES, update=vqkit.EMA(), start=vqkit.Normal(), seed=0)
    join()
    vq.observe(share(rank))
    if rank == 1:
        vq.collector.statistics.grad[0] = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vqkit.step(vq)
    return [str(warning.message)[:9] for warning in caught]


def test_faulty_vectors_are_reported_on_all_ranks() -> None:
    assert on_two_ranks(_faulty_on_one) == [["3 vectors"], ["3 vectors"]]


def _sharded(rank: int, join: Join, update: str) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join()
    model = Model(vqkit.VectorQuantizer(DIM, CODES, update=UPDATES[update], start=vqkit.Normal(), seed=0))
    mesh = init_device_mesh("cpu", (RANKS,))
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    vqkit.attach(optimizer, model)
    objective(model(share(rank))).backward()
    optimizer.step()
    return {name: getattr(model.vq, name).clone() for name in ("n", "usage", "idle")}


@pytest.mark.parametrize("update", UPDATES)
def test_fully_sharded_models_are_counted_once(update: str) -> None:
    learnt = agree(on_two_ranks(_sharded, update))
    whole = Model(vqkit.VectorQuantizer(DIM, CODES, update=UPDATES[update], start=vqkit.Normal(), seed=0))
    objective(whole(torch.cat([share(rank) for rank in range(RANKS)]))).backward()
    vqkit.step(whole)
    for name, entry in learnt.items():
        assert torch.equal(entry, getattr(whole.vq, name)), name
