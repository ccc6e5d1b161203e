"""What an audit finds out about a layer, and what it can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import vqkit
from tests.plain_layers import (
    LAYERS,
    Averaged,
    Mapping,
    Nested,
    Notebook,
    Rows,
    Sequences,
    Triple,
    WithDataclass,
)  # fmt: skip
from tests.zoo import ZOO, Case, vectors
from vqkit.gradients.audit import Conventions, audit, values
from vqkit.gradients.audit.discover import find_out
from vqkit.gradients.audit.subject import leaves


@pytest.fixture
def checks_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of how codebooks learn take longer, and have tests of their own."""
    monkeypatch.setattr("vqkit.gradients.audit.run.CHECKS", values.CHECKS)


class Expected(NamedTuple):
    layer: type[nn.Module]
    takes: str
    z_q: str
    indices: str
    losses: tuple[str, ...]
    total: tuple[str, ...]
    codebook: str


EXPECTED = (
    Expected(Triple, "(B, T, D)", "0", "1", ("2",), ("2",), "embedding.weight"),
    Expected(Rows, "(N, D)", "0", "1", ("2",), ("2",), "embedding.weight"),
    Expected(Sequences, "(B, D, T)", "0", "1", ("2",), ("2",), "embedding.weight"),
    Expected(Notebook, "(B, D, H, W)", "1", "3", ("0",), ("0",), "embedding.weight"),
    Expected(Nested, "(B, D, H, W)", "0", "2.2", ("1",), ("1",), "embedding.weight"),
    Expected(
        *(Mapping, "(B, T, D)", "quantized", "codes"),
        *(("losses.codebook", "losses.commitment", "losses.both"), ("losses.both",), "embedding.weight"),
    ),
    Expected(
        *(WithDataclass, "(B, T, D)", "quantized", "tokens"),
        *(("commitment_loss", "codebook_loss"), ("commitment_loss", "codebook_loss"), "columns"),
    ),
    Expected(Averaged, "(B, T, D)", "z_q", "indices", ("loss",), ("loss",), "embed"),
)


def test_every_convention_is_tested() -> None:
    assert {expected.layer for expected in EXPECTED} == set(LAYERS)


# K = 16 is D; 105 and 35 are products of the lengths that are tried first.
@pytest.mark.parametrize("codes", [16, 35, 105])
@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected.layer.__name__)
def test_conventions_are_found_out(expected: Expected, codes: int) -> None:
    layer = expected.layer(codes=codes)
    subject, words = find_out(layer, 16, Conventions())
    assert (
        Expected(
            *(expected.layer, subject.takes, subject.z_q, subject.indices or ""),
            *(subject.losses, subject.total, subject.codebook or ""),
        )
        == expected
    )
    assert subject.codes == codes
    assert words["takes"] == expected.takes
    table = layer.columns.T if expected.layer is WithDataclass else subject.tensor.view(codes, 16)
    assert torch.equal(subject.table(), table)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected.layer.__name__)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5)], ids=str)
def test_a_call_says_the_same_in_every_layout(expected: Expected, shape: tuple[int, ...]) -> None:
    """Vectors last in, vectors last out, whatever the layer takes: each row is the code that its index names."""
    subject, _ = find_out(expected.layer(), 16, Conventions())
    copy, codes, z = subject.fresh(), vectors(32, 16), vectors(*shape, 16, seed=1)
    copy.place(codes)
    out = copy(z.requires_grad_())
    nearest = torch.cdist(z.double(), codes.double()).argmin(-1)
    assert torch.equal(out.indices, nearest)
    assert torch.allclose(out.z_q, codes[nearest], atol=1e-5)
    (gradient,) = torch.autograd.grad(out.total, z)
    assert torch.allclose(gradient, 2 * 0.25 / z.numel() * (z - codes[nearest]), atol=1e-7)
    assert torch.equal(expected.layer().state_dict().keys() and subject.table(), subject.fresh().table())


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_quantizers_of_ours(case: Case) -> None:
    subject, _ = find_out(vqkit.ChannelsFirst(case.make(dim=16)), 16, Conventions())
    assert (subject.takes, subject.codebook) == ("(B, D, H, W)", "quantizer.codebook")
    assert subject.total == ("losses.total",)
    z = vectors(4, 9, 16)
    assert torch.equal(subject.fresh(train=False).encode(z), subject.fresh(train=False)(z).indices)
    assert torch.equal(subject.fresh().decode(torch.tensor([[3, 1]])), subject.table()[torch.tensor([[3, 1]])])


@pytest.mark.parametrize(("dim", "codes"), [(16, 8), (64, 1024)])
def test_a_codebook_that_waits_for_data_is_started(dim: int, codes: int) -> None:
    layer = vqkit.VectorQuantizer(dim=dim, codebook_size=codes, start=vqkit.KMeans(iterations=2))
    subject, words = find_out(layer, dim, Conventions())
    assert subject.codebook == "codebook"
    assert not subject.layer.pending and subject.waiting.pending and layer.pending
    assert words["start"].startswith("from data")
    # From as many vectors as codes, or more, no code is one that was moved slightly from another.
    assert torch.cdist(subject.table(), subject.table()).fill_diagonal_(9).min() > 0.5


class Permissive(Sequences):
    """Of (B, D, T), but a reshape takes any three axes."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = z.transpose(1, 2)
        z_q, indices, loss = self.quantized(moved.reshape(-1, self.dim))
        return z_q.reshape(moved.shape).transpose(1, 2), indices, loss


def test_of_two_layouts_that_a_layer_accepts_the_one_that_mixes_no_vectors() -> None:
    layer = Permissive()
    assert layer(torch.zeros(3, 35, 16))[0].shape == (3, 35, 16)
    assert find_out(layer, 16, Conventions())[0].takes == "(B, D, T)"


class Quiet(Triple):
    """z_q alone."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z)[0]


def test_indices_are_found_from_z_q() -> None:
    subject, words = find_out(Quiet(), 16, Conventions())
    assert subject.indices is None
    assert words["indices"].startswith("not returned")
    out = subject.fresh()(z := vectors(5, 16))
    assert out.total is None
    assert torch.equal(out.indices, Triple.nearest(subject.layer, z))


class Projected(nn.Module):
    """Factorised codes: they are looked up in 4 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.inner, self.outward = nn.Linear(16, 4), Triple(dim=4), nn.Linear(4, 16)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = self.inner(self.inward(z))
        return self.outward(z_q), indices, loss


@pytest.mark.usefixtures("checks_of_values")
def test_a_codebook_in_another_dimension_is_said_not_to_be_found() -> None:
    report = audit(Projected)
    assert report.conventions["codebook"].startswith("not found")
    assert ("law_01_rows", "the codebook was not found") in report.unmeasured


class Several(Projected):
    """Two codes for each vector, in tables of another dimension."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = super().forward(z)
        return z_q, torch.stack((indices, indices), 1), loss


def test_several_indices_for_each_vector_are_named_in_the_refusal() -> None:
    with pytest.raises(ValueError, match=r"At '1' it has 2 integers for each: audit one of the quantizers"):
        audit(Several())


class TwoLosses(Triple):
    """Weights are applied by who trains: its two losses are alike in value."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        z_q, indices, _ = super().forward(z)
        q = self.embedding(indices)
        return z_q, indices, ((z - q.detach()).square().mean((1, 2)), (q - z.detach()).square().mean((1, 2)))


def test_a_loss_for_each_element_of_the_batch() -> None:
    """It stands as its mean; and of two losses that are equal neither is the sum of the other."""
    subject, _ = find_out(TwoLosses(), 16, Conventions())
    assert subject.total == ("2.0", "2.1")
    out = subject.fresh()(z := vectors(3, 4, 16).requires_grad_())
    assert torch.allclose(out.total, 2 * (z - subject.table()[out.indices]).square().mean())


@pytest.mark.parametrize(
    ("tell", "attribute", "value"),
    [
        (Conventions(takes="channels first"), "takes", "(B, D, H, W)"),
        (Conventions(takes="(B, D, T)"), "takes", "(B, D, T)"),
        (Conventions(z_q="z_q"), "z_q", "z_q"),
        (Conventions(indices="indices"), "indices", "indices"),
        (Conventions(loss="losses.commitment"), "total", ("losses.commitment",)),
        (Conventions(codebook="quantizer.codebook"), "codebook", "quantizer.codebook"),
    ],
)
def test_what_is_told(tell: Conventions, attribute: str, value: object) -> None:
    layer = vqkit.ChannelsFirst(vqkit.VectorQuantizer(dim=16, codebook_size=8))
    subject, _ = find_out(layer, 16, tell)
    assert getattr(subject, attribute) == value


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda: Conventions(takes="NCHW"), r"takes is 'NCHW'; it must be one of 'channels last', 'channels first'"),
        (lambda: Conventions(indices="3"), r"nothing at '3'; it has '0', '1', '2'\."),
        (lambda: Conventions(loss="loss"), r"nothing at 'loss'; it has '0', '1', '2'\."),
        (lambda: Conventions(z_q="2"), r"it returns nothing of the input's shape at '2' but the input"),
        (lambda: Conventions(codebook="table"), r"no parameter or buffer 'table'; it has 'embedding.weight'\."),
        (lambda: Conventions(takes="channels first"), r"takes no vectors of dim=16"),
    ],
)
def test_what_is_told_wrongly(tell: Callable[[], Conventions], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        audit(Triple(), tell=tell())


def test_a_table_that_is_told_but_is_not_the_codebook() -> None:
    layer = Averaged()
    with pytest.raises(ValueError, match="codebook is 'embed_avg', but a change of its rows does not change z_q"):
        audit(layer, tell=Conventions(codebook="embed_avg"))


def test_paths_into_what_a_layer_returns() -> None:
    one = torch.zeros(1)
    raw = {"a": (one, [one, None, "text"]), "losses": vqkit.Losses(one, one, one), 3: 1.5}
    assert list(leaves(raw)) == ["a.0", "a.1.0", "losses.codebook", "losses.commitment", "losses.total"]
    assert list(leaves(one)) == [""]
