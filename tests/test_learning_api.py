"""vqkit.attach, step and start, observe, and what they say when they are used wrongly."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vqkit
from tests.contract.trained import CODES, DIM, TOKENS, Model, array, changed, close, objective, state, train
from tests.zoo import vectors
from vqkit import reference

X = vectors(TOKENS, DIM, seed=5)


def ema(**slots) -> Model:
    return Model(
        vqkit.VectorQuantizer(DIM, CODES, **{"update": vqkit.EMA(), "start": vqkit.Normal(), "seed": 0, **slots})
    )


# --- attach -------------------------------------------------------------------------------------------------------


def test_attached_codebooks_learn_once_a_step() -> None:
    model, by_hand = ema(), ema()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, by_hand))
    vqkit.attach(optimizer, model)
    for part in X.chunk(3):
        for m, o in ((model, optimizer), (by_hand, other)):
            o.zero_grad()
            objective(m(part)).backward()
            o.step()
        assert changed(state(model), state(by_hand))
        vqkit.step(by_hand)
        assert not changed(state(model), state(by_hand))
    assert model.vq.steps == 3


def test_a_removed_handle_steps_no_more() -> None:
    model = ema()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = vqkit.attach(optimizer, model)
    handle.remove()
    before = state(model)
    objective(model(X)).backward()
    optimizer.step()
    assert not changed(before, state(model))
    vqkit.attach(optimizer, model)
    optimizer.step()
    assert model.vq.steps == 1


def test_an_old_handle_does_not_release_the_new_one() -> None:
    model = ema()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    old = vqkit.attach(optimizer, model)
    old.remove()
    vqkit.attach(optimizer, model)
    old.remove()
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        vqkit.attach(optimizer, model)


def test_a_second_optimizer_is_refused() -> None:
    model, discriminator = ema(), nn.Linear(DIM, 1)
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    vqkit.attach(first, model)
    for parameters in (model.parameters(), [*discriminator.parameters(), *model.parameters()]):
        with pytest.raises(ValueError, match=r"attached to another optimizer \(SGD\) already.*remove\(\)"):
            vqkit.attach(torch.optim.SGD(parameters, lr=0.1), model)


def test_an_optimizer_that_is_gone_counts_no_more() -> None:
    """As where a cell of a notebook, with model and optimizer in it, runs again."""
    model = ema()
    optimizer = torch.optim.Adam(model.parameters())
    vqkit.attach(optimizer, model)
    optimizer = torch.optim.Adam(model.parameters())
    vqkit.attach(optimizer, model)
    model(X).loss.backward()
    optimizer.step()
    assert model.vq.steps == 1


def test_a_foreign_optimizer_is_refused() -> None:
    discriminator = nn.Linear(DIM, 1)
    with pytest.raises(ValueError, match="owns no parameter of model"):
        vqkit.attach(torch.optim.SGD(discriminator.parameters(), lr=0.1), ema())


def test_a_model_without_quantizer_is_refused() -> None:
    model = nn.Linear(DIM, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in (lambda: vqkit.step(model), lambda: vqkit.attach(optimizer, model)):
        with pytest.raises(ValueError, match=r"model \(Linear\) holds no VectorQuantizer"):
            call()


def test_the_other_optimizer_of_a_gan_moves_no_codebook() -> None:
    model, discriminator = ema(), nn.Linear(DIM, 1)
    first, second = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, discriminator))
    vqkit.attach(first, model)
    out = model(X)
    (discriminator(out.z_q).mean() + out.losses.total).backward()
    before = state(model.vq)
    second.step()
    assert not changed(before, state(model.vq))
    first.step()
    assert model.vq.usage.sum() == TOKENS


# --- gradient scalers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_moves_no_codebook(fused: bool) -> None:
    """A fused optimizer decides for itself whether to step, and runs its hooks either way."""
    model = ema()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    vqkit.attach(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    steps = []
    for fault in (1.0, torch.inf, 1.0):
        optimizer.zero_grad()
        out = model(X)
        scaler.scale(objective(out)).backward()
        model.encoder.weight.grad[0, 0] *= fault
        before = state(model)
        scaler.step(optimizer)
        scaler.update()
        steps.append(int(model.vq.steps))
        if fault != 1.0:
            assert not changed(before, state(model))
    assert steps == [1, 1, 2]


def test_found_inf_is_read_as_the_scaler_sets_it() -> None:
    model = ema()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    vqkit.attach(optimizer, model)
    for found, steps in ((1.0, 0), (0.0, 1)):
        objective(model(X)).backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
        optimizer.step()
        assert model.vq.steps == steps
    del optimizer.grad_scale, optimizer.found_inf
    objective(model(X)).backward()
    optimizer.step()
    assert model.vq.steps == 2


def test_statistics_are_not_scaled_with_the_loss() -> None:
    scaled, plain = ema(), ema()
    (objective(scaled(X)) * 1024).backward()
    objective(plain(X)).backward()
    vqkit.step(scaled)
    vqkit.step(plain)
    assert not changed(state(plain), state(scaled))


# --- the forgotten step -------------------------------------------------------------------------------------------


def passes(vq: vqkit.VectorQuantizer, count: int) -> None:
    for _ in range(count):
        vq(X[:2].clone().requires_grad_()).losses.total.backward()


@pytest.mark.parametrize("slots", [{}, {"update": vqkit.Gradient(), "revival": vqkit.Reseed()}])
def test_who_never_steps_is_warned_once(slots: dict) -> None:
    vq = ema(**slots).vq
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(vq, 99)
    with pytest.warns(RuntimeWarning, match=r"vqkit\.attach\(optimizer, model\) once"):
        passes(vq, 1)
    passes(vq, 200)  # warnings are errors here


def test_who_steps_or_needs_no_step_is_not_warned() -> None:
    vq = ema().vq
    for _ in range(3):
        passes(vq, 60)
        vqkit.step(vq)
    passes(ema(update=vqkit.Gradient()).vq, 150)
    passes(ema(update=vqkit.Frozen()).vq, 150)


# --- observe and start --------------------------------------------------------------------------------------------


def test_observe_fits_a_codebook_to_fixed_vectors() -> None:
    vq = ema(update=vqkit.EMA(0.0)).vq
    expected = array(vq.codebook)
    for _ in range(5):
        expected = reference.lloyd(array(X), expected)
        vq.observe(X)
        vqkit.step(vq)
        close(vq.codebook, expected, "the codebook")
    mask = torch.arange(TOKENS) < 10
    vq.observe(X.masked_fill(~mask[:, None], torch.nan), mask)
    vqkit.step(vq)
    assert vq.usage.sum() == pytest.approx(TOKENS * sum(0.99**k for k in range(1, 6)) + 10)


def test_start_runs_the_model_up_to_the_quantizer_and_leaves_it_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5), ema(start=vqkit.KMeans()).vq)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: entry for name, entry in state(model).items() if not name.startswith("3.")}
    vqkit.start(model, list(X.chunk(2)))
    after = state(model)
    assert not changed(before, after)
    assert [module.training for module in model.modules()] == modes
    assert after["3.started"]
    with torch.no_grad():
        z = array(model[1](model[0](X)))
    counts = np.bincount(reference.nearest(z, array(model[3].codebook)), minlength=CODES)
    close(model[3].n, counts / 2, "n, in vectors of one batch")
    assert (counts > 0).all()


def test_start_starts_one_quantizer_after_the_other() -> None:
    class Two(nn.Module):
        """The second sees what the first leaves, as in a residual quantizer."""

        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = (ema(start=vqkit.KMeans(iterations=30)).vq for _ in range(2))

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            rest = x * scale - self.first(x * scale).z_q
            return self.second(rest).z_q

    model = Two()
    vqkit.start(model, [(X, torch.tensor(3.0))])
    rest = array(3 * X - model.first.decode(model.first.encode(3 * X)))
    close(model.second.codebook, reference.lloyd(rest, array(model.second.codebook)), "the second codebook")
    before = state(model)
    vqkit.start(model, [(X + 1, torch.tensor(1.0))])
    assert not changed(before, state(model)), "a codebook that had started started again"


def test_start_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="no batch reached a quantizer that waits for data: pass at least one"):
        vqkit.start(ema(start=vqkit.KMeans()), [])
    with pytest.raises(ValueError, match="all of them are empty or masked"):
        vqkit.start(ema(start=vqkit.KMeans()), [X[:0]])

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vq = ema(start=vqkit.KMeans()).vq

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"no batch reached a quantizer .* model \(Idle\)"):
        vqkit.start(Idle(), [X])


def test_a_codebook_that_waits_says_so() -> None:
    vq = ema(start=vqkit.KMeans()).vq
    with pytest.raises(ValueError, match=r"not started: KMeans\(\).*vqkit\.start\(model, batches\)"):
        vq.encode(X)
    vq.eval()
    with pytest.raises(ValueError, match="not started"):
        vq(X)


def test_a_codebook_that_was_set_to_zero_does_not_wait_any_more() -> None:
    vq = ema(start=vqkit.KMeans()).vq
    vq.set_codebook(torch.zeros(CODES, DIM))
    assert vq.started
    assert (vq.encode(X) == 0).all()
    vqkit.start(vq, [X])
    assert not vq.codebook.any()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_codebook_that_waits_is_not_moved_by_its_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """Not even by weight decay: it would count as set from outside, and never start."""
    model = ema(update=vqkit.Gradient(), start=vqkit.KMeans())
    trained = optimizer(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        objective(model(X)).backward()
        trained.step()
        assert not model.vq.codebook.any()
    with torch.no_grad():
        z = model.encoder(X)
    model.vq.collector.take()
    train(model.vq, z)
    assert model.vq.started
    assert (torch.cdist(model.vq.codebook, z).min(1).values < 3).all()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_a_codebook_that_was_set_while_it_waited_learns_from_there(optimizer: type[torch.optim.Optimizer]) -> None:
    codes = 3 + vectors(CODES, DIM, seed=9)
    model = ema(update=vqkit.Gradient(), start=vqkit.KMeans())
    trained = optimizer(model.parameters(), lr=1e-3)
    vqkit.attach(trained, model)
    objective(model(X)).backward()
    with torch.no_grad():
        model.vq.codebook.copy_(codes)
    for _ in range(3):
        trained.step()
        trained.zero_grad()
        objective(model(X)).backward()
    assert (model.vq.codebook - codes).abs().max() < 0.02
    assert model.vq.started


# --- what is collected --------------------------------------------------------------------------------------------
