"""Answers to the questions people ask about vector quantization and its gradients, each run rather than believed.

What is commonly written is stated as it is written; where it is wrong, the test says by how much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import vqkit
from tests.zoo import vectors
from vqkit import reference

CODES, DIM = 16, 8


def quantizer(codes: Tensor, **slots) -> vqkit.VectorQuantizer:
    return vqkit.VectorQuantizer(codes.shape[1], len(codes), start=vqkit.Given(codes), **slots)


def gradient_at_z(z_q: Tensor, z: Tensor) -> Tensor:
    """What z receives from a decoder whose gradient at z_q is 0, 1, 2, ..."""
    upstream = torch.arange(float(z_q.numel())).view(z_q.shape)
    return torch.autograd.grad(z_q, z, upstream, retain_graph=True)[0]


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    return codes[(z[:, None] - codes).square().sum(-1).argmin(1)]


# --- "Why are we subtracting and adding the input?" ---------------------------------------------------------------


def test_rounding_has_gradient_zero_and_straight_through_has_two() -> None:
    x = torch.tensor([1.1, 2.1], requires_grad=True)
    y = 2 * x
    z = torch.round(y)
    assert z.sum() == 6
    assert torch.autograd.grad(z.sum(), x, retain_graph=True)[0].tolist() == [0, 0]
    z = y + (z - y).detach()
    assert z.sum() == 6
    assert torch.autograd.grad(z.sum(), x)[0].tolist() == [2, 2]


def test_the_same_two_with_a_codebook_of_whole_numbers() -> None:
    x = torch.tensor([1.1, 2.1], requires_grad=True)
    vq = quantizer(torch.arange(10.0)[:, None], update=vqkit.Frozen())
    z_q, indices, _ = vq((2 * x)[:, None])
    assert indices.tolist() == [2, 4]
    assert z_q.sum() == 6
    assert torch.autograd.grad(z_q.sum(), x)[0].tolist() == [2, 2]


def test_subtracting_instead_of_adding_has_the_right_gradient_and_the_wrong_value() -> None:
    """``inputs - stop_gradient(quantized - inputs)``, confirmed as valid in public: it is 2 z - q, which is no code."""
    z, codes = vectors(64, DIM).requires_grad_(), vectors(CODES, DIM, seed=1)
    q = nearest(z.detach(), codes)
    added, subtracted = z + (q - z).detach(), z - (q - z).detach()
    assert torch.equal(gradient_at_z(subtracted, z), gradient_at_z(added, z))
    torch.testing.assert_close(subtracted.detach(), 2 * z.detach() - q)
    ours = quantizer(codes)(z).z_q
    assert torch.equal(ours, q)
    assert torch.equal(gradient_at_z(ours, z), gradient_at_z(added, z))
    assert (subtracted - q).abs().mean() > 0.5  # twice as far from the code as z is


def test_copying_the_gradient_by_hand_is_the_same_as_stopping_it() -> None:
    """``def grad(dy): return dy`` is the straight-through estimator for z, but leaves a codebook no gradient at all."""

    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor, codebook: Tensor) -> Tensor:
            return nearest(z, codebook)

        @staticmethod
        def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
            return dy, None

    z, codebook = vectors(64, DIM).requires_grad_(), vectors(CODES, DIM, seed=1).requires_grad_()
    z_q = Copy.apply(z, codebook)
    assert torch.equal(gradient_at_z(z_q, z), gradient_at_z(quantizer(codebook.detach())(z).z_q, z))
    assert torch.autograd.grad(z_q.sum(), codebook, allow_unused=True)[0] is None


def test_adding_and_subtracting_is_a_code_only_to_rounding() -> None:
    """It is said that the value "is equal to e_q": of standard normal float32 numbers about a third differ."""
    z, codes = vectors(4096, 64), vectors(512, 64, seed=1)
    vq = quantizer(codes)
    z_q, indices, _ = vq(z)
    q = codes[indices]
    inexact = (z + (q - z).detach() != q).float().mean()
    assert 0.2 < inexact < 0.5
    assert torch.equal(z_q, q)
    low, low_q = z.bfloat16(), q.bfloat16()
    assert ((low + (low_q - low)).float() - low_q.float()).abs().max() > 0.01
    assert torch.equal(vq(low).z_q, codes[vq(low).indices].bfloat16())


# --- "Which loss trains which weights? How is the codebook updated, if argmin is not differentiable?" -------------


def test_each_loss_trains_what_it_is_said_to_train() -> None:
    encoder, decoder = torch.nn.Linear(4, DIM), torch.nn.Linear(DIM, 4)
    vq = quantizer(vectors(CODES, DIM, seed=1))
    x = vectors(32, 4)
    z_q, _, losses = vq(encoder(x))
    objectives = {
        "reconstruction": F.mse_loss(decoder(z_q), x),
        "codebook": losses.codebook,
        "commitment": losses.commitment,
    }
    trained = {}
    for name, objective in objectives.items():
        weights = (encoder.weight, vq.codebook, decoder.weight)
        gradients = torch.autograd.grad(objective, weights, retain_graph=True, allow_unused=True)
        trained[name] = [g is not None and bool(g.any()) for g in gradients]
    assert trained == {
        "reconstruction": [True, False, True],
        "codebook": [False, True, False],
        "commitment": [True, False, False],
    }


def test_without_straight_through_the_encoder_hears_nothing_of_the_reconstruction() -> None:
    z, codebook = vectors(32, DIM).requires_grad_(), vectors(CODES, DIM, seed=1).requires_grad_()
    decoded = nearest(z, codebook).square().sum()
    at_z, at_codebook = torch.autograd.grad(decoded, (z, codebook), allow_unused=True)
    assert at_z is None
    assert bool(at_codebook.any())  # and it trains the codebook, which it must not


def test_the_distance_gives_the_codebook_no_gradient_and_the_lookup_does_in_the_chosen_rows_only() -> None:
    z, codes = vectors(8, DIM), vectors(CODES, DIM, seed=1)
    vq = quantizer(codes)
    _, indices, losses = vq(z)
    losses.total.backward()
    chosen = torch.zeros(CODES, dtype=torch.bool).index_fill_(0, indices, True)
    assert 0 < chosen.sum() < CODES
    assert torch.equal(vq.codebook.grad.abs().sum(1) > 0, chosen)

    by_hand = torch.zeros(CODES, DIM, dtype=torch.float64)
    for vector, k in zip(z.double(), indices, strict=True):
        by_hand[k] -= 2 / z.numel() * (vector - codes[k].double())
    torch.testing.assert_close(vq.codebook.grad.double(), by_hand, rtol=1e-5, atol=1e-7)
    _, defined = reference.losses_gradient(z.double().numpy(), codes.double().numpy(), indices.numpy(), 0.25)
    torch.testing.assert_close(torch.from_numpy(defined), by_hand)


def test_the_total_is_the_sum_of_three_with_beta_inside_the_commitment() -> None:
    """``L = L_recon + L_codebook + L_commit`` with ``L_commit = beta |z_e - sg[e]|^2``: no other term has beta."""
    z, codes = vectors(32, DIM), vectors(CODES, DIM, seed=1)
    error = F.mse_loss(z, nearest(z, codes))
    for beta in (0.0, 0.25, 2.0):
        losses = quantizer(codes, commitment=beta)(z).losses
        torch.testing.assert_close(losses.codebook, error)
        torch.testing.assert_close(losses.commitment, beta * error)
        torch.testing.assert_close(losses.total, (1 + beta) * error)


# --- "The alternative: exponential moving averages" ---------------------------------------------------------------


def test_an_average_of_batch_means_is_not_the_published_average() -> None:
    """``e = decay e + (1 - decay) mean``: one vector then weighs as much as 99. Sums and counts weigh vectors alike."""
    lonely, crowd = torch.tensor([[1.0]]), torch.zeros(99, 1)
    decay, e = 0.5, torch.zeros(1)
    for batch in (crowd, lonely):
        e = decay * e + (1 - decay) * batch.mean(0)
    assert e == 0.5

    vq = quantizer(torch.zeros(1, 1), update=vqkit.EMA(decay))
    n, total = 1.0, 0.0  # a given code starts as one vector per step
    for batch in (crowd, lonely):
        vq.observe(batch)
        vqkit.step(vq)
        n, total = decay * n + (1 - decay) * len(batch), decay * total + (1 - decay) * float(batch.sum())
    torch.testing.assert_close(vq.codebook, torch.tensor([[total / n]]))
    assert vq.codebook < 0.02  # 0.5 / 25.5


def test_decayed_usage_is_the_one_that_people_write() -> None:
    """``usage *= 0.99; usage += one_hot(k).sum(0)``, in each training step."""
    vq = quantizer(vectors(CODES, DIM, seed=1))
    by_hand = torch.zeros(CODES)
    for step in range(5):
        z = vectors(32, DIM, seed=10 + step).requires_grad_()
        _, indices, losses = vq(z)
        by_hand = by_hand * 0.99 + F.one_hot(indices, CODES).sum(0)
        losses.total.backward()
        vqkit.step(vq)
    torch.testing.assert_close(vq.usage, by_hand)
    assert by_hand.sum() > 150
