"""The audit's checks of values: each finds its fault in broken quantizers, and nothing in those that have none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vqkit
from tests import broken, broken_learning
from tests.contract.law import Broken
from tests.plain_layers import LAYERS, Averaged, Nested, Notebook, Triple
from tests.zoo import ZOO, Case, made, vectors
from vqkit import reference
from vqkit.gradients.audit import derivatives, values
from vqkit.gradients.audit.discover import Conventions, find_out
from vqkit.gradients.audit.findings import FINDINGS
from vqkit.gradients.audit.report import LAWS, Audit, Finding, Kept, NotMeasured
from vqkit.gradients.audit.subject import Subject

Check = Callable[[Subject], list[Finding | Kept]]
OF_VALUES = {1, 2, 3, 4, 15, 16, 20}


QUICK = tuple(check for check in values.CHECKS if check is not values.law_20_memory)

MEMORY = (values.law_20_memory,)


def audited(layer: nn.Module, dim: int = 8, checks: Sequence[Check] = values.CHECKS) -> Audit:
    """What the checks of values find."""
    torch.manual_seed(0)
    subject, words = find_out(layer, dim, Conventions())
    found: list[Finding | Kept] = []
    unmeasured = []
    for check in checks:
        torch.manual_seed(0)
        try:
            found += check(subject.fresh())
        except NotMeasured as reason:
            unmeasured.append((check.__name__, str(reason)))
    findings = tuple(item for item in found if isinstance(item, Finding))
    return Audit("layer", words, findings, tuple(item for item in found if isinstance(item, Kept)), tuple(unmeasured))


def told(report: Audit) -> dict[str, str]:
    """What was measured, by the names of the findings."""
    names = {(expected, fix): name for name, (*_, expected, _, fix) in FINDINGS.items()}
    return {names[f.expected, f.fix]: f.measured for f in report.broken}


def share(text: str) -> float:
    """The first percentage in it, as a share."""
    return float(re.search(r"([\d.]+) %", text)[1]) / 100


# --- what is broken, and what is not ------------------------------------------------------------------------------

OWN = [b for b in (*broken.BROKEN, *broken_learning.BROKEN) if int(b.breaks.split("_")[1]) in OF_VALUES]
OTHERS = [b for b in broken.BROKEN if b not in OWN]


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.case.name)
def test_what_breaks_a_law_of_values_is_found_with_that_law_first(case: Broken) -> None:
    report = audited(case.case.make())
    assert report.broken[0].law.number == int(case.breaks.split("_")[1])


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.case.name)
def test_what_breaks_another_law_keeps_those_of_values(case: Broken) -> None:
    assert not audited(case.case.make(), checks=QUICK).findings


@pytest.mark.parametrize("case", (*ZOO, broken.CONTROL), ids=lambda case: case.name)
def test_ours_keep_every_law_and_every_check_is_made(case: Case) -> None:
    report = audited(case.make())
    assert not report.findings
    assert not report.unmeasured


@pytest.mark.parametrize("codes", [1, 2])
def test_few_codes(codes: int) -> None:
    assert not audited(vqkit.VectorQuantizer(dim=8, codebook_size=codes), checks=QUICK).findings


HAZARDS = {
    "rounded rows", "1000 standard deviations from the origin", "with the layer and z in bfloat16",
    "under autocast on the CPU", "split", "n x k", "accepted", "empty",
}  # fmt: skip


@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_plain_layers_have_no_fault_and_the_hazards_that_they_truly_have(cls: type[nn.Module]) -> None:
    torch.manual_seed(1)
    report = audited(cls(), dim=16)
    hazards = set(HAZARDS)
    if cls is Averaged:
        hazards = hazards - {"accepted"} | {"poison"}
    if cls is Notebook:  # one-hot rows in float32 by codes in bfloat16: it raises
        hazards -= {"with the layer and z in bfloat16"}
    assert report.ok
    assert set(told(report)) == hazards


# --- the figures --------------------------------------------------------------------------------------------------


def test_law_1_tells_the_slip_and_the_rounding() -> None:
    slip = told(audited(made(broken.SignSlip)(), checks=QUICK))["no rows"]
    assert slip.endswith("z_q is 2 z - q")
    z, q = vectors(4, 64, 16), vectors(4, 64, 16, seed=1)
    rounded = told(audited(Triple(), dim=16, checks=QUICK))["rounded rows"]
    by_hand = float((z + (q - z) != q).double().mean())
    assert abs(share(rounded) - by_hand) < 0.05
    worst = float(re.search(r"up to ([\d.e-]+) from", rounded)[1])
    assert 1e-3 < worst < 0.05


class OnlyInTraining(Triple):
    """Rows in evaluation; noise on them in training."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = super().forward(z)
        return (z_q + 0.1 * torch.randn_like(z_q) if self.training else z_q), indices, loss


def test_law_1_looks_at_training_too() -> None:
    assert told(audited(OnlyInTraining(), 16, checks=QUICK))["no rows"].startswith("in training")


def test_law_2_counts_as_the_reference_does() -> None:
    z, table = 1000 + vectors(64, 16), 1000 + vectors(32, 16, seed=1)
    chosen = (z.square().sum(1, keepdim=True) - 2 * z @ table.T + table.square().sum(1)).argmin(1)
    expected = reference.nearest(z.double().numpy(), table.double().numpy())
    wrong = (values._excess(z, table, chosen) > 1e-9).numpy()
    assert np.array_equal(wrong, chosen.numpy() != expected)
    assert 0.05 < wrong.mean() < 0.95


def test_law_1_allows_a_layer_to_learn_before_it_looks_up() -> None:
    layer = made(broken_learning.LearnsInForward, update=vqkit.EMA(0.5))()
    torch.manual_seed(0)
    subject, _ = find_out(layer, 8, Conventions())
    assert not [item for item in values.law_01_rows(subject.fresh()) if isinstance(item, Finding)]


class SecondNearest(Triple):
    def nearest(self, flat: Tensor) -> Tensor:
        return torch.cdist(flat, self.embedding.weight).topk(2, largest=False).indices[:, 1]


class LastOfEquals(Triple):
    def nearest(self, flat: Tensor) -> Tensor:
        table = self.embedding.weight.flip(0)
        return len(table) - 1 - torch.cdist(flat, table, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def test_law_2_is_a_fault_at_the_origin() -> None:
    report = audited(SecondNearest(), 16, checks=QUICK)
    assert report.broken[0].severity == "fault"
    assert share(told(report)["not nearest"]) == 1
    assert len([f for f in report.broken if f.law.number == 2]) == 1


def test_law_2_ties() -> None:
    assert share(told(audited(LastOfEquals(), 16, checks=QUICK))["ties"]) == 1


class ByAngle(Triple):
    def nearest(self, flat: Tensor) -> Tensor:
        return (flat @ nn.functional.normalize(self.embedding.weight, dim=1).T).argmax(1)


def test_law_2_is_not_asked_of_who_chooses_by_the_angle() -> None:
    report = audited(ByAngle(), 16, checks=QUICK)
    assert ("law_02_nearest", "the layer chooses by the angle, not by the distance") in report.unmeasured
    assert report.ok


class WithoutPermute(Nested):
    """The classical fault: NCHW reshaped to (N, D) as it lies in memory."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        z_q, indices, loss = self.quantized(z.reshape(len(z), *z.shape[2:], self.dim))
        return z_q.view(z.shape), loss, (loss.detach(), indices, indices)


def test_law_3_finds_vectors_that_are_mixed() -> None:
    for codebook in (None, "embedding.weight"):
        subject, _ = find_out(WithoutPermute(), 16, Conventions(takes="channels first", codebook=codebook))
        assert subject.codebook == codebook
        (found,) = values.law_03_invariance(subject)
        assert (found.severity, found.law.number) == ("fault", 3)
        assert "permute" in found.fix


class BatchCentred(Triple):
    """Looks up what is left after the batch's mean: its neighbours decide about a vector."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = super().forward(z - z.mean((0, 1), keepdim=True))
        return z_q, indices, loss


def test_law_3_finds_neighbours_that_decide() -> None:
    report = audited(BatchCentred(), 16, checks=QUICK)
    assert "fault" in {f.severity for f in report.broken if f.law.number == 3}


class Shifted(Nested):
    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        return super().get_codebook_entry((indices + 1) % 32, shape)


class EncodesOtherwise(Triple):
    def encode(self, z: Tensor) -> Tensor:
        return self.forward(-z)[1]

    def decode(self, indices: Tensor) -> Tensor:
        return self.embedding(indices)


def test_law_4_faults() -> None:
    assert "decodes otherwise" in told(audited(Shifted(), 16, checks=QUICK))
    assert "encodes otherwise" in told(audited(EncodesOtherwise(), 16, checks=QUICK))


def test_law_15_tells_what_is_spoilt() -> None:
    spoilt = told(audited(Averaged(), 16, checks=QUICK))["poison"]
    assert spoilt == "one nan in z, one training step: 6.25 % of embed, 6.25 % of embed_avg is not finite"


@pytest.mark.parametrize(("cls", "ratio"), [(broken.PaddingCounted, 0.5), (broken.PaddingMultiplied, 256)])
def test_law_16_tells_by_how_much_padding_counts(cls: type[broken.Plain], ratio: float) -> None:
    found = told(audited(made(cls)(), checks=QUICK))["padding"]
    assert float(re.search(r"is ([\d.]+) times", found)[1]) == pytest.approx(ratio, rel=0.15)


class Decays(vqkit.VectorQuantizer):
    """Its codes shrink with every step, whatever was in it."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Any:
        out = super().forward(z, mask)
        with torch.no_grad():
            self.codebook.mul_(0.9)
        return out


def test_law_16_sees_an_update_by_nothing() -> None:
    assert "a code moves by" in told(audited(Decays(8, 16, update=vqkit.EMA()), checks=QUICK))["empty"]


def test_law_20_tells_one_hot_rows_from_distances() -> None:
    one_hot, distances = (
        told(audited(made(cls)(), checks=MEMORY))["n x k"] for cls in (broken.OneHot, broken.AllDistances)
    )
    assert "2 of them one-hot" in one_hot
    assert "none of them one-hot" in distances


class Broadcast(Triple):
    def nearest(self, flat: Tensor) -> Tensor:
        return (flat[:, None] - self.embedding.weight).square().sum(2).argmin(1)


def test_law_20_does_not_fill_the_memory_to_see_n_k_d() -> None:
    assert "for N = 61 " in told(audited(Broadcast(), 16, checks=MEMORY))["n x k"]


class Projects(nn.Module):
    """Codes pass through a learned matrix, so that what comes out is no row of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", vectors(32, 16, seed=3))
        self.matrix = nn.Linear(16, 16, bias=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.matrix(self.table)
        indices = torch.cdist(z, codes.expand(len(z), -1, -1)).argmin(-1)
        q = codes[indices]
        loss = (q - z.detach()).square().mean() + 0.25 * (z - q.detach()).square().mean()
        return z + (q - z).detach(), indices, loss


class TwoTables(nn.Module):
    """The sum of two codes, the second of what the first leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Averaged(), Averaged()
        self.second.embed.mul_(0.5)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        one = self.first(z)
        two = self.second((z - one.z_q).detach())
        return one.z_q + two.z_q, torch.stack((one.indices, two.indices), -1)


@pytest.mark.parametrize("cls", [Projects, TwoTables])
def test_what_is_made_of_codes_is_not_judged_as_rows(cls: type[nn.Module]) -> None:
    torch.manual_seed(2)
    report = audited(cls(), dim=16, checks=(*values.CHECKS, *derivatives.CHECKS))
    assert "no row of the table" in report.conventions["z_q"]
    assert report.ok
    unmeasured = {name for name, why in report.unmeasured if "projected, or a sum of several tables" in why}
    assert unmeasured == {"law_01_rows", "law_02_nearest", "law_04_round_trip", "law_06_losses"}


def test_the_slip_moves_with_z_and_is_judged() -> None:
    subject, words = find_out(made(broken.SignSlip)(), 8, Conventions())
    assert not subject.composed
    assert "no row" not in words["z_q"]


def test_every_finding_is_one_line_and_complete() -> None:
    for number, severity, *words in FINDINGS.values():
        assert number in LAWS
        assert severity in ("fault", "hazard")
        assert all(word and "\n" not in word for word in words)
