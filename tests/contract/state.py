"""Laws 17, 18, 19 and 21: what is saved, how ranks agree, what compiles, and usage over a data set."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vqkit
from tests.contract.law import Law
from tests.contract.learning import starts_from_data
from tests.contract.trained import (
    CODES,
    DIM,
    TOKENS,
    Model,
    array,
    changed,
    close,
    fresh,
    objective,
    state,
    train,
    unrevived,
)
from tests.ranks import RANKS, on_two_ranks
from tests.zoo import Case, vectors
from vqkit import reference

# --- law 17: saved, loaded, set from outside ----------------------------------------------------------------------


def law_17_round_trip(case: Case) -> None:
    """Strict, through safetensors, into a quantizer of another seed: the same bits, and the same future."""
    trained, loaded = case.make(), fresh(case, seed=1)
    train(trained, vectors(TOKENS, DIM, seed=1))
    kinds = {name: type(entry) for name, entry in trained.state_dict().items() if not isinstance(entry, Tensor)}
    assert not kinds, f"law 17: the state_dict holds what only a pickle can: {kinds}"
    loaded.load_state_dict(safetensors.torch.load(safetensors.torch.save(state(trained))), strict=True)
    assert not changed(state(trained), state(loaded)), "law 17: loading changed what was saved"
    for seed in range(2, 5):
        train(trained, vectors(TOKENS, DIM, seed=seed))
        train(loaded, vectors(TOKENS, DIM, seed=seed))
        different = changed(state(trained), state(loaded))
        assert not different, f"law 17: {different} learn otherwise after loading: some state was not saved"


def law_17_strict(case: Case) -> None:
    """Each entry is needed, and none that is foreign is taken."""
    saved = state(case.make())
    wrong = [{key: entry for key, entry in saved.items() if key != missing} for missing in saved]
    for entries in (*wrong, {**saved, "embed_avg": torch.zeros(1)}, {**saved, "codebook": torch.zeros(3, DIM)}):
        try:
            case.make().load_state_dict(entries, strict=True)
        except RuntimeError:
            continue
        raise AssertionError(f"law 17: a strict load took {sorted(entries)} for a state of {sorted(saved)}")


def law_17_set_stays(case: Case) -> None:
    """A codebook that was set, loaded or written in place is used at once and only learns from there."""
    codes = 5 + vectors(CODES, DIM, seed=21)

    def set_it(vq: vqkit.Quantizer) -> None:
        vq.set_codebook(codes)

    def load_it(vq: vqkit.Quantizer) -> None:
        other = case.make()
        other.set_codebook(codes)
        vq.load_state_dict(state(other))

    def write_it(vq: vqkit.Quantizer) -> None:
        with torch.no_grad():
            vq.codebook.copy_(codes)

    chosen = codes[:4].repeat(4, 1)
    for put in (set_it, load_it, write_it):
        for vq in (case.make(), fresh(case)):
            vq.revival = vqkit.NoRevival()
            put(vq)
            assert torch.equal(vq.encode(chosen), torch.arange(4).repeat(4)), f"law 17: {put.__name__} had no effect"
            for _ in range(3):
                train(vq, chosen)
                vqkit.start(vq, [vectors(TOKENS, DIM)])
                close(vq.codebook, codes, f"law 17: after {put.__name__} a codebook did not stay")


def law_17_copies(case: Case) -> None:
    """A deep copy and a pickled copy hold the same state, learn alike, and share nothing with the original."""
    for duplicate in (copy.deepcopy, lambda vq: pickle.loads(pickle.dumps(vq))):
        vq = case.make()
        optimizer = torch.optim.SGD(Model(vq).parameters(), lr=0.0)
        vqkit.attach(optimizer, vq) if case.update == "gradient" else None
        objective(vq(vectors(TOKENS, DIM, seed=9).requires_grad_())).backward()
        twin, before = duplicate(vq), state(vq)
        assert not changed(before, state(twin)), "law 17: a copy holds another state"
        vqkit.step(twin)
        assert not changed(before, state(twin)), "law 17: a copy took what the original had collected"
        train(twin, vectors(TOKENS, DIM, seed=2))
        assert not changed(before, state(vq)), "law 17: training a copy changed the original"


# --- law 18: ranks ------------------------------------------------------------------------------------------------


def _optimized(vq: vqkit.Quantizer) -> tuple[Model, torch.optim.Optimizer]:
    """A model whose encoder is the identity, exactly, and stays: a sample goes by the bits of the vectors."""
    model = Model(vq)
    with torch.no_grad():
        model.encoder.weight.copy_(torch.eye(DIM))
    groups = [{"params": list(model.encoder.parameters()), "lr": 0.0}, {"params": list(vq.parameters()), "lr": 0.5}]
    return model, torch.optim.SGD([group for group in groups if group["params"]])


def _share(rank: int, ranks: int, step: int) -> Tensor:
    return vectors(RANKS * TOKENS, DIM, seed=30 + step).chunk(ranks)[rank]


def _advance(model: Model, optimizer: torch.optim.Optimizer, called: nn.Module, x: Tensor) -> dict[str, Tensor]:
    optimizer.zero_grad()
    out = called(x)
    (out.z_q.square().sum() / max(1, out.z_q.numel()) + out.losses.total).backward()
    optimizer.step()
    vqkit.step(model, optimizer)
    return {**state(model), "gradient of the encoder": model.encoder.weight.grad.clone()}


def _train_rank(rank: int, join: Callable[[], None], name: str, waiting: bool) -> tuple[dict[str, Tensor], ...]:
    """The state after three steps on this rank's share, and after two more with rank 1 empty, then masked."""
    model, optimizer = _optimized(_prepared(name, waiting))
    join()
    parallel = DistributedDataParallel(model)
    for step in range(3):
        equal = _advance(model, optimizer, parallel, _share(rank, RANKS, step))
    _advance(model, optimizer, parallel, vectors(TOKENS * (rank == 0), DIM, seed=40))
    mask = torch.full((TOKENS,), rank == 0)
    with model.vq.register_forward_pre_hook(lambda module, args: (*args, mask)):
        last = _advance(model, optimizer, parallel, vectors(TOKENS, DIM, seed=41))
    before = state(model)
    vqkit.step(model, optimizer)
    assert not changed(before, state(model)), "law 18: a step with nothing collected on any rank changed something"
    return equal, last


def _prepared(name: str, waiting: bool) -> vqkit.Quantizer:
    from tests.broken_learning import BROKEN
    from tests.zoo import ZOO

    case = next(case for case in (*ZOO, *(broken.case for broken in BROKEN)) if case.name == name)
    return fresh(case) if waiting else case.make()


def law_18_ranks(case: Case) -> None:
    """Under DDP two ranks hold the same bits, those of one rank with both batches up to rounding."""
    for waiting in (False, True) if starts_from_data(case) else (False,):
        try:
            zero, one = on_two_ranks(_train_rank, case.name, waiting)
        except RuntimeError as error:
            raise AssertionError(f"law 18: a rank failed: {str(error)[-600:]}") from error
        for first, second, when in zip(zero, one, ("after equal batches", "after empty ones"), strict=True):
            assert not changed(first, second), f"law 18: ranks differ in {changed(first, second)} {when}"
        model, optimizer = _optimized(_prepared(case.name, waiting))
        for step in range(3):
            alone = _advance(model, optimizer, model, _share(0, 1, step))
        for key, whole in alone.items():
            close(zero[0][key], whole, f"law 18: {key} on two ranks is not that of one rank with both batches")


# --- law 19: graphs -----------------------------------------------------------------------------------------------


class _Encode(nn.Module):
    def __init__(self, vq: vqkit.Quantizer) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, z: Tensor) -> Tensor:
        return self.vq.encode(z)


class _Decode(_Encode):
    def forward(self, indices: Tensor) -> Tensor:
        return self.vq.decode(indices)


@contextmanager
def tracing() -> Iterator[None]:
    """PyTorch's compilers warn of what PyTorch itself does (2.13: of `autograd.Function` and of `torch.jit`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _alike(graph: object, eager: object, what: str) -> None:
    for one, other in zip(torch.utils._pytree.tree_leaves(graph), torch.utils._pytree.tree_leaves(eager), strict=True):
        assert one.dtype == other.dtype, f"law 19: {what} gives {one.dtype} for {other.dtype}"
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), f"law 19: {what} gives other results"


def law_19_compile(case: Case) -> None:
    """Whole graphs for forward, encode and decode, equal to eager; training through them learns the same."""
    torch.compiler.reset()
    try:
        with tracing():
            _compiled(Model(unrevived(case)), Model(unrevived(case)))
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"law 19: no whole graph: {str(error)[:300]}") from error


def _compiled(traced: Model, eager: Model) -> None:
    training = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = vectors(TOKENS, DIM, seed=seed)
        out, expected = training(x), eager(x)
        _alike(out, expected, "a compiled forward")
        for model, result in ((traced, out), (eager, expected)):
            model.zero_grad()
            objective(result).backward()
            vqkit.step(model)
        _alike(traced.encoder.weight.grad, eager.encoder.weight.grad, "a compiled backward")
        for key, entry in state(eager).items():
            close(traced.state_dict()[key], entry, f"law 19: {key} learns otherwise through a compiled forward")
    traced.eval()
    for module, given in ((traced, x), (_Encode(traced.vq), x), (_Decode(traced.vq), eager.vq.encode(x))):
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        _alike(compiled(given), module(given), f"a compiled {type(module).__name__}")


def law_19_export(case: Case) -> None:
    """Exported programs with a free batch size, in evaluation and in training mode."""
    vq, z = case.make(), vectors(4, 5, DIM)
    free = ({0: torch.export.Dim("batch", min=2, max=1024)},)
    for training in (False, True):
        vq.train(training)
        modules = (vq, _Encode(vq), _Decode(vq)) if not training else (vq,)
        for module in modules:
            given = vq.encode(z) if isinstance(module, _Decode) else z
            other = torch.cat([given, given.flip(0), given])
            try:
                program = torch.export.export(module, (given,), dynamic_shapes=free)
            except Exception as error:
                mode = "training" if training else "evaluation"
                raise AssertionError(f"law 19: no export of {type(module).__name__} in {mode}: {error}") from error
            _alike(program.module()(other), module(other), f"the exported {type(module).__name__}")


# --- law 21: usage over a data set --------------------------------------------------------------------------------


def law_21_usage(case: Case) -> None:
    """Usage and perplexity are of all that was counted, whatever the batches; the layer's decays by 0.99 a step."""
    z = vectors(7 * TOKENS, DIM, seed=50)
    sizes = [1, 2, 5, 40, 400]
    vq = unrevived(case)
    counts = np.bincount(vq.encode(z).numpy(), minlength=CODES)
    whole = vqkit.Usage(CODES)
    for part in z.split(sizes):
        whole.add(vq.encode(part))
    assert np.isclose(whole.perplexity, reference.perplexity(counts)), "law 21: perplexity depends on the batches"
    assert whole.used == reference.usage(counts), "law 21: usage depends on the batches"
    expected = np.zeros(CODES)
    for seed in range(4):
        batch = vectors(TOKENS, DIM, seed=seed)
        expected = 0.99 * expected + np.bincount(vq.encode(batch).numpy(), minlength=CODES)
        train(vq, *batch.split([1, 3, 10, 50]))
        close(vq.usage, expected, "law 21: usage is not the counts of each step, decayed by 0.99 a step")
    assert np.isclose(reference.perplexity(array(vq.usage)), reference.perplexity(expected), rtol=1e-4), (
        "law 21: the perplexity of the layer depends on the micro-batches"
    )


LAWS: tuple[Law, ...] = (
    *map(Law, (law_17_round_trip, law_17_strict, law_17_set_stays, law_17_copies)),
    Law(law_18_ranks),
    Law(law_19_compile),
    Law(law_19_export),
    Law(law_21_usage),
)
