"""The audit of laws 3 and 11 to 17 on quantizers that keep them, and on averages as people write them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vqkit
from tests.audited import audited
from tests.plain_layers import LAYERS, Averaged, Triple
from tests.zoo import ZOO
from vqkit.gradients.audit import learning, state

CHECKS = (*learning.CHECKS, *state.CHECKS)


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_the_zoo_keeps_every_law_of_learning(case):
    report = audited(case.make(), CHECKS, dim=8)
    assert not report.broken, report.broken
    averages = [kept.measured for kept in report.kept if kept.law.number == 12]
    decay = {"ema": "0.99", "ema-kmeans-rotation": "0.9", "ema-given-reseed": "0.99"}.get(case.name)
    assert averages == ([f"an average of counts and of sums with decay {decay}"] if decay else [])
    assert any(kept.law.number == 14 for kept in report.kept) == ("reseed" in case.name)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_plain_layers_have_no_fault_in_learning_and_only_an_average_in_forward_has_hazards(layer):
    report = audited(layer, CHECKS, dim=16)
    assert report.ok, report.broken
    laws = {finding.law.number for finding in report.broken}
    assert laws == ({11, 12, 17} if layer is Averaged else set()), report.broken


def _measured(layer, law: int, checks=CHECKS) -> list[tuple[str, str]]:
    return [(f.severity, f.measured) for f in audited(layer, checks, dim=16).broken if f.law.number == law]


def test_the_hazards_of_an_average_in_forward_have_their_numbers():
    told = [text for severity, text in _measured(Averaged, 11) if severity == "hazard"]
    assert len(told) == 3
    assert "forward alone in training mode changes embed, embed_avg, cluster_size" in told[0]
    assert "activation checkpointing" in told[1] and "four micro-batches" in told[2]


@pytest.mark.parametrize("decay", [0.8, 0.99])
def test_the_decay_is_found(decay):
    report = audited(lambda: Averaged(decay=decay), CHECKS, dim=16)
    assert f"an average of counts and of sums with decay {decay}" in [kept.measured for kept in report.kept]


class _EMA(Averaged):
    """An average whose step can be another one."""

    def forward(self, z: Tensor):
        training, self.training = self.training, False
        out = super().forward(z)
        self.training = training
        if training and torch.is_grad_enabled():
            flat, table = z.detach().reshape(-1, z.shape[-1]), self.embed[0]
            one_hot = F.one_hot(out.indices.reshape(-1), len(table)).to(flat.dtype)
            self.step(one_hot.sum(0), one_hot.T @ flat)
        return out

    @torch.no_grad()
    def step(self, counts: Tensor, sums: Tensor) -> None:
        self.cluster_size[0].lerp_(counts, 1 - self.decay)
        self.embed_avg[0].lerp_(sums, 1 - self.decay)
        self.embed[0].copy_(self.embed_avg[0] / self.size(self.cluster_size[0])[:, None])

    def size(self, n: Tensor) -> Tensor:
        return n


class OfMeans(_EMA):
    """The often quoted average of batch means."""

    def step(self, counts: Tensor, sums: Tensor) -> None:
        used = counts > 0
        self.embed[0, used] = self.embed[0, used].lerp(sums[used] / counts[used, None], 1 - self.decay)


class Smoothed(_EMA):
    def size(self, n: Tensor) -> Tensor:
        return (n + 1e-5) / (n.sum() + len(n) * 1e-5) * n.sum()


class EmptyAtFirst(Smoothed):
    """As in a widely copied notebook: counts of zero, and sums drawn apart from the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster_size.zero_()
        self.embed_avg.normal_()


class Expires(_EMA):
    """Dead codes are replaced in the codebook alone, and overwritten by the average that follows."""

    def __init__(self) -> None:
        super().__init__(decay=0.8)

    def forward(self, z: Tensor):
        dead = self.cluster_size[0] < 2
        if self.training:
            with torch.no_grad():
                self.embed[0, dead] = z.detach().reshape(-1, z.shape[-1])[:1]
        return super().forward(z)


class Noisy(Triple):
    def nearest(self, flat: Tensor) -> Tensor:
        return super().nearest(flat + torch.randn_like(flat))


class Threaded(nn.Module):
    """The mean of the last batch stands in a plain attribute, and moves the sums in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.vq, self.last = Averaged(), None

    def forward(self, z: Tensor):
        out = self.vq(z)
        if self.training and self.last is not None:
            with torch.no_grad():
                self.vq.embed_avg.mul_(1 + 1e-2 * self.last)
        if self.training:
            self.last = out.z_q.detach().mean()
        return out


@pytest.mark.parametrize(
    ("layer", "law", "severity", "says"),
    [
        (OfMeans, 12, "hazard", "a code moves 1 % of the way to 1 vector, 1 % to the mean of 9"),
        (Smoothed, 12, "hazard", "decayed its count and sum to 1e-05 of what they were, a code is off by 0."),
        (EmptyAtFirst, 12, "fault", "idle codes move on the first step"),
        (Expires, 14, "fault", "are put onto vectors, and none is there when it ends"),
        (Noisy, 3, "fault", "evaluation gives other codes"),
        (Threaded, 17, "fault", "three steps give another codebook"),
    ],
)
def test_what_is_wrong_is_told_with_its_number(layer, law, severity, says):
    found = _measured(layer, law)
    assert [text for told, text in found if told == severity and says in text], found


def test_a_start_from_data_is_found_in_a_layer_of_another_make():
    class Starts(Averaged):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("initted", torch.zeros(1))

        def forward(self, z: Tensor):
            if self.training and not self.initted:
                flat = z.detach().reshape(-1, z.shape[-1])
                chosen = flat[torch.randint(len(flat), (self.embed.shape[1],))]
                self.embed[0].copy_(chosen)
                self.embed_avg[0].copy_(chosen)
                self.initted.fill_(1)
            return super().forward(z)

    class Forgets(Starts):
        def forward(self, z: Tensor):
            started, sums = bool(self.initted), self.embed_avg.clone()
            out = super().forward(z)
            if not started and self.training:
                self.embed_avg.copy_(sums)
            return out

    assert [severity for severity, _ in _measured(Starts, 13)] == ["hazard"]
    assert any("the step after the start moves half of the codes" in text for _, text in _measured(Forgets, 13))


def test_a_codebook_that_is_set_through_the_layer_is_no_hazard():
    layer = vqkit.VectorQuantizer(16, 32, update=vqkit.EMA(), start=vqkit.Normal())
    assert not _measured(layer, 17)


class StartsAtOnce(Averaged):
    """The first vectors that it sees, whatever the mode, become its codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initted", torch.zeros(1))

    def forward(self, z: Tensor):
        if not self.initted:
            flat = z.detach().reshape(-1, z.shape[-1])
            chosen = flat[torch.randint(len(flat), (self.embed.shape[1],))]
            self.embed[0].copy_(chosen)
            self.embed_avg[0].copy_(chosen)
            self.initted.fill_(1)
        return super().forward(z)


def test_evaluation_that_starts_a_codebook_is_a_hazard_of_law_11_and_nothing_else_is_blamed():
    report = audited(StartsAtOnce, CHECKS, dim=16)
    assert report.ok, report.broken
    told = [f.measured for f in report.broken if "before the first training step" in f.measured]
    assert told == ["before the first training step eval() and no_grad changes embed, embed_avg, initted"]
    assert not [f for f in report.broken if f.law.number == 3], report.broken


class Threshold(Averaged):
    """After its step, what was chosen less than once per step on average becomes a vector of the batch."""

    def forward(self, z: Tensor):
        out = super().forward(z)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                dead = self.cluster_size[0] < 2
                self.embed[0, dead] = z.detach().reshape(-1, z.shape[-1])[:1]
                self.embed_avg[0, dead], self.cluster_size[0, dead] = self.embed[0, dead], 1.0
        return out


def test_codes_that_are_all_chosen_must_live_in_large_batches_too():
    (told,) = [text for _, text in _measured(Threshold, 14) if "such codes" in text]
    assert "in batches of 4 vectors" in told and "in batches of 32" in told
