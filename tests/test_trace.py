"""`vqkit.trace`: what it says of losses, against definitions, and that it changes nothing."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vqkit
from tests.zoo import ZOO, Case, vectors
from vqkit.gradients.routes import edges_of, gradients, reached, route
from vqkit.gradients.trace import measure
from vqkit.models import ModelConfig, Patchwise

DIM, CODES = 8, 16


def parts(**slots) -> tuple[vqkit.VQVAE, Tensor]:
    torch.manual_seed(0)
    vq = vqkit.VectorQuantizer(DIM, CODES, seed=0, start=vqkit.Normal(), **slots)
    return vqkit.VQVAE(nn.Linear(5, DIM), vq, nn.Linear(DIM, 5)), vectors(32, 5)


def losses_of(model: vqkit.VQVAE, x: Tensor) -> dict[str, Tensor]:
    x_hat, _, losses = model(x)
    return {"reconstruction": F.mse_loss(x_hat, x), "codebook": losses.codebook, "commitment": losses.commitment}


# --- routes -------------------------------------------------------------------------------------------------------


def test_each_kind_of_zero() -> None:
    a, b, c = (torch.ones(3, requires_grad=True) for _ in range(3))
    loss = (a * 2).sum() + (b.round() * 5).sum() + (c.detach() * 7).sum()
    assert route(loss, [a]) == (pytest.approx(2 * 3**0.5), "flows")
    assert route(loss, [b]) == (0.0, "zero")
    assert route(loss, [c]) == (0.0, "no path")
    assert route(loss, []) == (0.0, "no parameters")
    assert route(loss, [a, c]).kind == "flows"
    assert route(loss, [b, c]).kind == "zero"


def test_walking_agrees_with_autograd_on_what_is_connected() -> None:
    x = torch.ones(4, requires_grad=True)
    y = x * 2
    first, second = y.split(2)
    loss = first.sum()
    assert reached(loss, [x, y, first, second, loss]) == [True, True, True, False, True]
    tried = [torch.autograd.grad(loss, t, retain_graph=True, allow_unused=True)[0] for t in (x, y, first, second)]
    assert [t is not None for t in tried] == [True, True, True, False]
    assert reached(torch.ones(()), [x]) == [False]
    assert len(edges_of(loss)) == len({(e.source, e.target, e.output) for e in edges_of(loss)})


def test_a_node_whose_backward_returns_nothing_is_a_path_with_gradient_zero() -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> None:
            return None

    x = torch.ones(3, requires_grad=True)
    assert route(Nothing.apply(x).sum(), [x]) == (0.0, "zero")
    (found,) = gradients(Nothing.apply(x).sum(), [x])
    assert torch.equal(found, torch.zeros(3))


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_of_a_vqvae(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = parts()
    table = vqkit.trace(losses_of(model, x), model)
    kinds = {loss: {group: r.kind for group, r in row.items()} for loss, row in table.routes.items()}
    assert kinds == {
        "reconstruction": {"encoder": "flows", "quantizer": "zero", "decoder": "flows"},
        "codebook": {"encoder": "zero", "quantizer": "flows", "decoder": "no path"},
        "commitment": {"encoder": "flows", "quantizer": "zero", "decoder": "no path"},
    }
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
    assert [line.split()[0] for line in printed.splitlines()[:4]] == [
        "gradient",
        "reconstruction",
        "codebook",
        "commitment",
    ]


def test_norms_and_cosines_are_those_of_plain_backward_passes() -> None:
    model, x = parts()
    flat = {}
    for name in ("reconstruction", "commitment"):
        model.zero_grad()
        losses_of(model, x)[name].backward()
        flat[name] = np.concatenate([p.grad.double().numpy().ravel() for p in model.encoder.parameters()])
    model.zero_grad()
    table = measure(losses_of(model, x), model)
    a, b = flat.values()
    assert table.routes["reconstruction"]["encoder"].norm == pytest.approx(np.linalg.norm(a), rel=1e-6)
    assert table.routes["commitment"]["encoder"].norm == pytest.approx(np.linalg.norm(b), rel=1e-6)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert table.cosines == {"encoder": {("reconstruction", "commitment"): pytest.approx(cosine, abs=1e-6)}}


def test_groups_of_ones_own() -> None:
    model, x = parts()
    z = model.encoder(x)
    z_q, _, losses = model.quantizer(z)
    groups = {"z": z, "z_q": z_q, "bias": [model.encoder.bias], "codes": model.quantizer}
    table = measure({"reconstruction": F.mse_loss(model.decoder(z_q), x), "commitment": losses.commitment}, groups)
    row = table.routes["reconstruction"]
    assert row["z"].norm == row["z_q"].norm > 0  # copied
    assert table.routes["commitment"]["z_q"].kind == "no path"
    assert row["codes"].kind == "zero"


def test_what_no_loss_can_train_is_said_to_have_no_parameters() -> None:
    model, x = parts(update=vqkit.EMA())
    found = losses_of(model, x)
    del found["codebook"]
    assert measure(found, model).routes["commitment"]["quantizer"].kind == "no parameters"


def test_parameters_of_the_model_itself_are_a_group() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.inner = nn.Linear(2, 2)

    model = Own()
    table = measure({"loss": (model.scale * model.inner(torch.ones(1, 2))).sum()}, model)
    assert set(table.routes["loss"]) == {"inner", "Own"}


def test_json_has_every_number() -> None:
    model, x = parts()
    z = model.encoder(x).detach()
    table = measure(losses_of(model, x), model, z=z, loss_of=lambda z_q: F.mse_loss(model.decoder(z_q), x))
    entries = json.loads(json.dumps(table.to_json()))
    assert entries["routes"]["commitment"]["decoder"] == {"norm": 0.0, "kind": "no path"}
    assert set(entries["cosines"]["encoder"]) == {"reconstruction / commitment"}
    assert entries["straight_through"]["changes"] == 32 * 5


# --- straight-through quality -------------------------------------------------------------------------------------


def test_of_a_linear_loss_the_promise_is_kept() -> None:
    model, x = parts()
    weights = vectors(32, DIM, seed=3)
    quality = measure(losses_of(model, x), model, z=model.encoder(x), loss_of=lambda q: (q * weights).sum())
    assert quality.straight_through.correlation == pytest.approx(1, abs=1e-4)


def test_of_a_quadratic_loss_it_is_what_the_algebra_says() -> None:
    """``|e_j - t|^2 - |e_k - t|^2 = g.(e_j - e_k) + |e_j - e_k|^2`` with ``g = 2 (e_k - t)``."""
    model, x = parts()
    z, targets, codes = model.encoder(x).detach(), vectors(32, DIM, seed=3), model.quantizer.codebook.detach()
    quality = measure(losses_of(model, x), model, z=z, loss_of=lambda q: (q - targets).square().sum()).straight_through
    promised, happened = [], []
    for vector, target in zip(z.double(), targets.double(), strict=True):
        order = (vector - codes.double()).square().sum(1).argsort()
        k = codes[order[0]].double()
        for j in order[1:6]:
            step = codes[j].double() - k
            promised.append(float(2 * (k - target) @ step))
            happened.append(promised[-1] + float(step @ step))
    assert quality.correlation == pytest.approx(np.corrcoef(promised, happened)[0, 1], abs=1e-4)
    assert quality.changes == 160


def test_z_may_have_its_channels_first() -> None:
    torch.manual_seed(0)
    model = ModelConfig(architecture=Patchwise(hidden=8), dim=4, codebook_size=CODES, start=vqkit.Normal()).build(
        seed=0
    )
    x = torch.rand(2, 3, 16, 16)
    z = model.encoder(x)  # (2, 4, 4, 4): both ends are of length dim
    z_q, _, losses = model.quantizer(z)
    weights = torch.randn(z_q.shape)
    table = measure({"commitment": losses.commitment}, model, z=z, loss_of=lambda q: (q * weights).sum())
    assert table.straight_through.correlation == pytest.approx(1, abs=1e-4)


def test_at_most_64_vectors_are_tried_whatever_the_batch() -> None:
    model, _ = parts()
    x = vectors(1000, 5)
    quality = measure(losses_of(model, x), model, z=model.encoder(x), loss_of=lambda q: q.square().mean())
    assert quality.straight_through.changes == 64 * 5


# --- nothing changes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ZOO])
def test_no_gradient_statistic_buffer_or_random_state_changes(case: Case) -> None:
    torch.manual_seed(1)
    vq = case.make(dim=DIM)
    decoder = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5), nn.Linear(DIM, 5))
    model = vqkit.VQVAE(nn.Linear(5, DIM), vq, decoder)
    x = vectors(32, 5)

    def after(traced: bool) -> dict[str, Tensor]:
        torch.manual_seed(2)
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), 0.1)
        vqkit.attach(optimizer, mine)
        z = mine.encoder(x)
        z_q, _, losses = mine.quantizer(z)
        reconstruction = F.mse_loss(mine.decoder(z_q), x)
        if traced:
            before = torch.get_rng_state()
            z.retain_grad()
            measure(
                {"reconstruction": reconstruction, "commitment": losses.commitment},
                mine,
                z=z,
                loss_of=lambda q: F.mse_loss(mine.decoder(q), x),
            )
            assert torch.equal(torch.get_rng_state(), before)
            assert all(p.grad is None for p in [z, *mine.parameters()])
        (reconstruction + losses.total).backward()
        optimizer.step()
        return mine.state_dict()

    plain, traced = after(False), after(True)
    for name, tensor in plain.items():
        assert torch.equal(tensor, traced[name]), name


def test_python_and_numpy_draw_on_as_if_nothing_had_been_traced() -> None:
    model, x = parts()
    drawn: list[float] = []

    def noisy(z_q: Tensor) -> Tensor:
        drawn.append(random.random() + np.random.rand())
        return z_q.square().mean() + drawn[-1]

    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3), np.random.seed(3)
    measure(losses_of(model, x), model, z=model.encoder(x), loss_of=noisy)
    assert (random.random(), np.random.rand()) == expected
    assert len(drawn) == 32 * 5 + 2
    assert len(set(drawn)) == 1  # each time the same


def test_a_graph_is_kept_for_the_backward_pass_that_follows() -> None:
    model, x = parts()
    found = losses_of(model, x)
    measure(found, model)
    sum(found.values()).backward()
    with pytest.raises(ValueError, match=r"losses\['reconstruction'\] has lost its graph: trace before"):
        measure(found, model)


# --- what is not an ordinary number -------------------------------------------------------------------------------


def test_complex_gradients_count_with_both_parts() -> None:
    weight = torch.full((3,), 1 + 2j, requires_grad=True)
    table = measure({"a": (weight * (3 - 4j)).real.sum(), "b": weight.abs().square().sum()}, {"weight": weight})
    assert table.routes["a"]["weight"].norm == pytest.approx(5 * 3**0.5)
    direct = torch.autograd.grad((weight * (3 - 4j)).real.sum(), weight)[0].numpy()
    other = torch.autograd.grad(weight.abs().square().sum(), weight)[0].numpy()
    cosine = (direct * other.conj()).sum().real / np.linalg.norm(direct) / np.linalg.norm(other)
    assert table.cosines["weight"]["a", "b"] == pytest.approx(cosine)


def test_sparse_gradients_count_once_per_look_up() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1))
    table = measure({"a": model(torch.tensor([1, 1, 2])).sum()}, model)
    row = model[1].weight.detach()[0]
    assert table.routes["a"]["0"].norm == pytest.approx(float(torch.stack([2 * row, row]).norm()), rel=1e-6)


def test_nan_is_a_kind_and_no_number() -> None:
    model, x = parts()
    x_hat = model.decoder(model.encoder(x))
    table = measure({"nan": (x_hat * torch.nan).sum(), "ok": x_hat.sum()}, model)
    assert table.routes["nan"]["encoder"].kind == "not finite"
    assert "not finite" in str(table) and "nan" not in str(table).replace("nan  ", "")
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["routes"]["nan"]["encoder"]["norm"] is None
    assert table.cosines == {}


@pytest.mark.parametrize("codes", [1, 2, 4])
def test_few_codes_and_constant_losses_have_no_correlation(codes: int) -> None:
    model, x = parts()
    model = vqkit.VQVAE(model.encoder, vqkit.VectorQuantizer(DIM, codes, seed=0), model.decoder)
    z = model.encoder(x)
    table = measure(losses_of(model, x), model, z=z, loss_of=lambda q: q.sum() * 0)
    assert table.straight_through == (None, 32 * (codes - 1))
    assert "correlation undefined" in str(table)
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["straight_through"]["correlation"] is None


def test_a_wide_table_is_turned_and_many_cosines_are_cut() -> None:
    groups = {f"a_group_with_a_name_{i}": torch.ones(2, requires_grad=True) for i in range(12)}
    total = torch.stack(list(groups.values())).sum()
    table = measure({"first": total, "second": 2 * total}, groups)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["gradient", "norm", "first", "second"]
    assert lines[-1] == "and 4 more, all greater: see .cosines"
    assert sum(line.startswith("cosine at ") for line in lines) == 8


def test_what_wraps_a_model_is_no_group() -> None:
    model, x = parts()
    wrapped = nn.Sequential(nn.Sequential(model))
    assert set(measure(losses_of(model, x), wrapped).routes["codebook"]) == {"encoder", "quantizer", "decoder"}


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_losses_are_refused_in_a_line() -> None:
    model, x = parts()
    x_hat, _, losses = model(x)
    for found, said in [
        ({}, "losses must name at least one"),
        ([losses.total], "losses must name at least one"),
        ({"r": (x_hat - x).square()}, r"losses\['r'\] has shape \(32, 5\); it must be a scalar tensor: take its mean"),
        ({"r": 0.5}, r"losses\['r'\] is a float"),
        ({"r": losses.total.detach()}, "has no graph: it was detached"),
        ({"r": torch.ones(3, requires_grad=True).sum()}, r"depends on nothing in encoder, quantizer, decoder"),
    ]:
        with pytest.raises(ValueError, match=said):
            measure(found, model)


def test_a_reentrant_checkpoint_hides_its_parameters_and_is_refused() -> None:
    model, x = parts()
    hidden = checkpoint(model.encoder, x.requires_grad_(), use_reentrant=True)
    with pytest.raises(ValueError, match="reentrant activation checkpoint"):
        measure({"r": model.decoder(hidden).sum()}, model)
    seen = checkpoint(model.encoder, x, use_reentrant=False)
    assert measure({"r": model.decoder(seen).sum()}, model).routes["r"]["encoder"].kind == "flows"


def test_bad_models_and_latents_are_refused_in_a_line() -> None:
    model, x = parts()
    found, z = losses_of(model, x), model.encoder(x)
    with pytest.raises(ValueError, match="come together"):
        measure(found, model, z=z)
    with pytest.raises(ValueError, match="holds 0 quantizers of vqkit: pass codebook="):
        measure(found, {"encoder": model.encoder}, z=z, loss_of=lambda q: q.sum())
    with pytest.raises(ValueError, match=r"z has shape \(32, 5\); its last axis must be 8 long"):
        measure(found, model, z=x, loss_of=lambda q: q.sum())
    with pytest.raises(ValueError, match="two axes are 8 long: pass z as"):
        measure(
            found,
            model.encoder,
            z=z.view(2, 8, 2, 1, 8)[:, :, 0, 0],
            loss_of=lambda q: q.sum(),
            codebook=torch.ones(3, 8),
        )
    with pytest.raises(ValueError, match="of an embedding its weight"):
        measure(found, model, z=z, loss_of=lambda q: q.sum(), codebook=nn.Embedding(3, 8))
    with pytest.raises(ValueError, match=r"loss_of\(z_q\) has no graph"):
        measure(found, model, z=z, loss_of=lambda q: q.detach().sum())
    with pytest.raises(ValueError, match="too coarse for what one code changes"):
        measure(found, model, z=z, loss_of=lambda q: q.sum().bfloat16())
    for group in ([model.encoder, model.decoder], 3):
        with pytest.raises(ValueError, match=r"model\['a'\] must be a module, a tensor or a sequence"):
            measure(found, {"a": group})
    with pytest.raises(ValueError, match="model is a list"):
        measure(found, [model])
    with pytest.raises(ValueError, match="loss_of returned"):
        measure(found, model, z=z, loss_of=lambda q: q)
    with pytest.raises(ValueError, match="nothing that requires a gradient"):
        measure(found, nn.ReLU())
