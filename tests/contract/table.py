"""Law 11: forward never changes state, and what is counted is what fills a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vqkit
from tests.contract.law import Law
from tests.contract.trained import DIM, TOKENS, Model, array, changed, close, objective, state, train, unrevived
from tests.zoo import Case, vectors
from vqkit import reference


def plain(model: Model, x: Tensor) -> None:
    objective(model(x)).backward()


def checkpointed(model: Model, x: Tensor) -> None:
    objective(checkpoint(model, x, use_reentrant=False)).backward()


def frozen_encoder(model: Model, x: Tensor) -> None:
    model.encoder.requires_grad_(False)
    objective(model(x)).backward()


def only_z_q(model: Model, x: Tensor) -> None:
    model(x).z_q.sum().backward()


def only_commitment(model: Model, x: Tensor) -> None:
    model(x).losses.commitment.backward()


def only_total(model: Model, x: Tensor) -> None:
    model(x).losses.total.backward()


def four_micro_batches(model: Model, x: Tensor) -> None:
    for part in x.chunk(4):
        objective(model(part)).backward()


def loss_with_gradient_penalty(model: Model, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    out = model(x)
    (gradient,) = torch.autograd.grad(objective(out), x, create_graph=True)
    (objective(out) + gradient.square().sum()).backward()


def two_passes_over_one_forward(model: Model, x: Tensor) -> None:
    loss = objective(model(x))
    loss.backward(retain_graph=True)
    loss.backward()


def without_grad(model: Model, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def inference(model: Model, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def evaluation(model: Model, x: Tensor) -> None:
    model.eval()
    objective(model(x)).backward()
    model.vq.encode(x)


def without_backward(model: Model, x: Tensor) -> None:
    model(x)


def gradient_alone(model: Model, x: Tensor) -> None:
    torch.autograd.grad(objective(model(x)), model.encoder.weight)


def gradient_of_gradient(model: Model, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(model(x)), x, create_graph=True)
    torch.autograd.grad(gradient.square().sum(), model.encoder.weight)


def backward_into_inputs(model: Model, x: Tensor) -> None:
    objective(model(x)).backward(inputs=[model.encoder.weight])


Way = Callable[[Model, Tensor], None]
NOTHING: tuple[Way, ...] = (
    *(without_grad, inference, evaluation, without_backward),
    *(gradient_alone, gradient_of_gradient, backward_into_inputs),
)
ONCE: tuple[Way, ...] = (
    *(plain, checkpointed, frozen_encoder, only_z_q, only_commitment, only_total),
    *(four_micro_batches, loss_with_gradient_penalty),
)


def counted(vq: vqkit.Quantizer, way: Way, times: int) -> None:
    """The step after ``way`` finds the statistics of the batch so many times, by ``reference.py``."""
    model, x = Model(vq), vectors(TOKENS, DIM, seed=5)
    codebook, n, before = array(vq.codebook), array(vq.n), state(vq)
    z = array(model.encoder(x))
    counts, sums = reference.statistics(z, codebook, reference.nearest(z, codebook))
    try:
        way(model, x)
    except RuntimeError as error:
        raise AssertionError(f"law 11: {way.__name__} fails: {error}") from error
    vqkit.step(model)
    if times == 0:
        assert not changed(before, state(vq)), f"law 11: {way.__name__} changed {changed(before, state(vq))}"
        return
    close(vq.usage, times * counts, f"law 11: after {way.__name__} usage is not {times} times the counts")
    if isinstance(vq.update, vqkit.EMA):
        codebook, n = reference.ema(codebook, n, times * counts, times * sums, vq.update.decay)
        close(vq.n, n, f"law 11: after {way.__name__} n is not of {times} times the counts")
    close(vq.codebook, codebook, f"law 11: after {way.__name__} the codebook is not of {times} times the batch")


def law_11_nothing(case: Case) -> None:
    for way in NOTHING:
        counted(unrevived(case), way, 0)


def law_11_once(case: Case) -> None:
    for way in ONCE:
        counted(unrevived(case), way, 1)


def law_11_twice(case: Case) -> None:
    counted(unrevived(case), two_passes_over_one_forward, 2)


def law_11_forward_keeps_state(case: Case) -> None:
    """Neither forward nor backward changes anything before the step."""
    vq = case.make()
    before = state(vq)
    for _ in range(2):
        out = vq(vectors(TOKENS, DIM).requires_grad_())
        assert not changed(before, state(vq)), f"law 11: forward changed {changed(before, state(vq))}"
        objective(out).backward()
        assert not changed(before, state(vq)), f"law 11: backward changed {changed(before, state(vq))}"


def law_11_step_between(case: Case) -> None:
    """A step of everything between forward and backward is no error and leaves the gradients as they were."""

    def gradients(between: bool) -> list[Tensor]:
        vq = case.make()
        train(vq, vectors(TOKENS, DIM, seed=1))
        z = vectors(TOKENS, DIM, seed=2).requires_grad_()
        out = vq(z)
        waiting = vq(vectors(TOKENS, DIM, seed=3).requires_grad_())
        if between:
            objective(waiting).backward()
            vqkit.step(vq)
        vq.zero_grad()
        with torch.no_grad():
            if between and case.update == "gradient":
                vq.codebook.add_(0.5)
        try:
            objective(out).backward()
        except RuntimeError as error:
            raise AssertionError(f"law 11: backward after a step fails: {error}") from error
        return [z.grad, *(parameter.grad for parameter in vq.parameters())]

    for with_step, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_step, without), "law 11: a write to the codebook before backward changed a gradient"


LAWS: tuple[Law, ...] = tuple(
    map(Law, (law_11_nothing, law_11_once, law_11_twice, law_11_forward_keeps_state, law_11_step_between))
)
