"""The race is fair, its accounts add up, and its commands run."""

from __future__ import annotations

import re
from collections import Counter

import torch
from benchmarks import step
from benchmarks.plain import CODES, DIM, PlainQuantizer, PlainVQVAE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def convolutions(model: nn.Module) -> Counter:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return Counter((type(layer), layer.weight.shape, layer.stride, layer.bias is None) for layer in layers)


def test_both_models_have_the_same_convolutions() -> None:
    assert convolutions(PlainVQVAE()) == convolutions(step.our_model())


def test_the_plain_quantizer_chooses_and_learns() -> None:
    """Codes far apart and vectors that lie on them; the codebook then follows the published average, smoothed."""
    layer = PlainQuantizer()
    layer.codebook = 10.0 * torch.eye(CODES, DIM) + torch.arange(CODES)[:, None]
    chosen, sums = [3, 5, 5, 80], layer.sums.clone()
    z = layer.codebook[chosen].T.reshape(1, DIM, 2, 2).clone().requires_grad_()
    z_q, commitment, perplexity = layer(z)
    torch.testing.assert_close(z_q, z)
    z_q.sum().backward()
    assert bool((z.grad == 1).all())  # straight through
    assert float(commitment.detach()) < 1e-6
    torch.testing.assert_close(perplexity, torch.tensor(4.0**0.5 * 2.0**0.5))
    counts = torch.zeros(CODES).index_put_((torch.tensor(chosen),), torch.ones(4), accumulate=True)
    smoothed = (0.01 * counts + 1e-5) / (0.04 + CODES * 1e-5) * 0.04
    vectors = torch.zeros(CODES, DIM).index_add_(0, torch.tensor(chosen), z.detach()[0].flatten(1).T)
    torch.testing.assert_close(layer.codebook, (0.99 * sums + 0.01 * vectors) / smoothed[:, None])


def test_the_profile_accounts_for_every_convolution() -> None:
    """The work by shapes is what PyTorch's own counter says, and all parts are there."""
    batch = torch.rand(2, 3, 32, 32)
    watched = step.Profile(step.ours_watched(), [batch] * 2)
    assert watched.calls.total() == 2 * 15
    assert {step.QUANTIZER, step.FORWARD, step.BACKWARD, "optimizer"} <= watched.parts.keys()
    with FlopCounterMode(display=False) as counter:
        x_hat, _, losses = step.our_model()(batch)
        (x_hat.sum() + losses.total).backward()
    counted = counter.get_flop_counts()["Global"]
    own = {part: sum(watched.calls[layer] * step.flops(*layer) for layer in watched.calls if layer[0] == part)
           for part in step.BOTH}  # fmt: skip
    assert own[step.FORWARD] == counted[torch.ops.aten.convolution]
    assert own[step.BACKWARD] == counted[torch.ops.aten.convolution_backward]


def test_the_tables() -> None:
    speed, parts, layers = step.tables(batch=2, rounds=2)
    assert re.search(r"^\| ours \| [0-9.]+ \| 1\.00 \(1\.00 to 1\.00\) \|$", speed, re.MULTILINE)
    assert [row.split(" |")[0] for row in speed.splitlines()[2:4]] == ["| plain", "| plain, channels last"]
    shares = [float(cell) for row in parts.splitlines()[3:-1] for cell in re.findall(r"([0-9.]+)% \|$", row)]
    assert abs(sum(shares) - 100) < 1
    assert layers.count("\n| ") == 2 + 9  # the head, nine kinds of convolution, all
