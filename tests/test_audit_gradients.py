"""The audit of gradients and losses: laws 5, 6, 8, 9 and 10."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.audited import audited, number
from tests.broken import BROKEN
from tests.plain_layers import LAYERS, Triple
from tests.zoo import ZOO
from vqkit.gradients.audit.derivatives import CHECKS

MINE = [broken for broken in BROKEN if number(broken.breaks) in (5, 6, 8, 9, 10)]


@pytest.mark.parametrize("broken", MINE, ids=lambda broken: broken.case.name)
def test_what_breaks_a_law_of_gradients_is_found_with_this_law_first(broken):
    report = audited(broken.case.make(), CHECKS, dim=8)
    assert report.broken, report.kept
    assert report.broken[0].law.number == number(broken.breaks), report.broken


@pytest.mark.parametrize(
    "broken", [b for b in BROKEN if number(b.breaks) < 5 or number(b.breaks) > 14], ids=lambda broken: broken.case.name
)
def test_what_breaks_another_law_breaks_none_of_gradients(broken):
    report = audited(broken.case.make(), CHECKS, dim=8)
    assert not report.broken, report.broken


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_the_zoo_keeps_every_law_of_gradients(case):
    report = audited(case.make(), CHECKS, dim=8)
    assert not report.broken, report.broken
    assert not report.unmeasured, report.unmeasured
    held = " ".join(kept.measured for kept in report.kept)
    assert f"beta = {case.commitment:.3g}" in held
    assert ("rotation trick" in held) == ("rotation" in case.name)
    assert ("the codebook loss has weight 1" in held) == (case.update == "gradient")
    assert ("frozen" in held) == (case.update == "frozen")


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("beta", [0.25, 0.7])
def test_plain_layers_keep_every_law_of_gradients_and_beta_is_found(layer, beta):
    report = audited(lambda: layer(beta=beta), CHECKS, dim=16)
    assert not report.broken, report.broken
    assert not report.unmeasured, report.unmeasured
    assert any(f"beta = {beta}" in kept.measured for kept in report.kept), report.kept


class _Losses(Triple):
    """A plain layer whose loss and estimator can be other ones."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = self.nearest(z.reshape(-1, self.dim)).view(z.shape[:-1])
        q = self.embedding(indices)
        return self.estimate(z, q), indices, self.loss(z, q)

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return z + (q - z).detach()

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


class Sums(_Losses):
    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return (q - z.detach()).square().sum() + 0.25 * (z - q.detach()).square().sum()


class SumsOverDim(_Losses):
    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return super().loss(z, q) * self.dim


class HalfWeight(_Losses):
    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return 0.5 * super().loss(z, q)


class SwappedByDefault(_Losses):
    """As several widely used repositories have it."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return F.mse_loss(q.detach(), z) + 0.25 * F.mse_loss(q, z.detach())


class Twice(_Losses):
    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return 2 * z + (q - 2 * z).detach()


class Backwards(_Losses):
    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return (q + z).detach() - z


class FrozenLeak(_Losses):
    """No estimator where z needs no gradient: what the decoder wants reaches the codes."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        return z + (q - z).detach() if z.requires_grad else q


class Scaled(_Losses):
    """The scale |q|/|z| without an epsilon: NaN where z is 0."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        scale = q.detach().norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True)
        return q.detach() + scale * (z - z.detach())


class Detached(_Losses):
    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return 0.25 * F.mse_loss(z, q).detach()

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        z_q, indices, loss = super().forward(z)
        return {"z_q": z_q, "indices": indices, "loss": loss}


class NoCommitment(_Losses):
    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return F.mse_loss(q, z.detach())


@pytest.mark.parametrize(
    ("layer", "law", "severity", "says"),
    [
        (Sums, 6, "hazard", "1024 times those of means"),
        (SumsOverDim, 6, "hazard", "16 times those of means"),
        (HalfWeight, 6, "hazard", "the codebook loss has weight 0.5"),
        (SwappedByDefault, 6, "fault", "beta is on the wrong term"),
        (Twice, 5, "fault", "dL/dz is 2 dL/dz_q"),
        (Backwards, 5, "fault", "dL/dz is -1 dL/dz_q"),
        (FrozenLeak, 5, "hazard", "under a frozen encoder (z without gradient)"),
        (Scaled, 10, "fault", "the gain is inf for z = 0"),
        (Detached, 9, "fault", "leave it bit for bit as it was"),
    ],
)
def test_what_is_wrong_is_told_with_its_number(layer, law, severity, says):
    first = audited(layer, CHECKS, dim=16).broken[0]
    assert (first.law.number, first.severity) == (law, severity)
    assert says in first.measured


def test_a_loss_that_is_connected_to_nothing_is_told_where_the_codes_are_a_buffer():
    layer = Detached()
    layer.embedding.weight.requires_grad_(False)
    (only,) = audited(layer, CHECKS, dim=16).broken
    assert only.law.number == 9
    assert "loss depends on nothing that takes a gradient" in only.measured


def test_a_loss_without_commitment_is_told_so_and_is_no_fault():
    report = audited(NoCommitment, CHECKS, dim=16)
    assert not report.broken
    assert any("beta = 0" in kept.measured for kept in report.kept)


def test_a_loss_of_other_terms_is_not_judged():
    class WithEntropy(_Losses):
        def loss(self, z: Tensor, q: Tensor) -> Tensor:
            chances = (-(z[..., None, :] - self.embedding.weight).square().sum(-1)).softmax(-1).flatten(0, -2).mean(0)
            return super().loss(z, q) + (chances * chances.log()).sum()

    report = audited(WithEntropy, CHECKS, dim=16)
    assert not report.broken, report.broken
    assert {"law_06_losses"} == {name for name, _ in report.unmeasured}


def test_the_layer_is_left_as_it_was():
    layer = Triple()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    audited(layer, CHECKS, dim=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert isinstance(layer, nn.Module) and layer.training
