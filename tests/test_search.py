"""The search on its own: more draws than the contract makes, its errors, and what only it can be asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.law import draws
from tests.contract.values import SITUATIONS, medium_precision
from tests.native.paths import PATHS, take, threads
from tests.zoo import vectors
from vqkit import reference
from vqkit.functional import chunked, nearest_codes, squared_distances_to
from vqkit.functional.quantize import _without_faults, statistics_of

NAN, INF = float("nan"), float("inf")
seeds = st.integers(0, 10**6)


@pytest.fixture(params=PATHS, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs once for each way to search that this machine has."""
    take(request.param, monkeypatch)
    return request.param


def _expected(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    with np.errstate(over="ignore", under="ignore"):
        return torch.from_numpy(reference.nearest(z.double().numpy(), codebook.double().numpy()))


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nearest(situation: str) -> None:
    @draws(25)
    @given(seeds, st.integers(0, 80), st.integers(1, 80), st.integers(1, 40))
    def nearest(seed: int, n: int, codes: int, dim: int) -> None:
        z, codebook = SITUATIONS[situation](seed, n, codes, dim)
        assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook))

    nearest()


@draws(40)
@given(seeds, st.integers(1, 40), st.integers(1, 200), st.integers(1, 1024), st.sampled_from([0.0, 1e4]))
def test_shapes_that_fill_no_register(seed: int, n: int, codes: int, dim: int, offset: float) -> None:
    z, codebook = offset + vectors(n, dim, seed=seed), offset + vectors(codes, dim, seed=seed + 1)
    expected = _expected(z, codebook)
    assert torch.equal(nearest_codes(z, codebook), expected)
    assert torch.equal(nearest_codes(z.T.contiguous().T, codebook.repeat(1, 2)[:, :dim]), expected), "strided"


@draws(40)
@given(seeds, st.integers(1, 40), st.sampled_from([1, 9, 300]), st.integers(1, 9), st.sampled_from([NAN, INF, -INF]))
def test_a_fault_anywhere_is_named(seed: int, n: int, codes: int, dim: int, fault: float) -> None:
    tensors = {"z": vectors(n, dim, seed=seed), "codebook": vectors(codes, dim, seed=seed + 1)}
    words = {"z": f"in 1 of {n} vectors (the first is vector ", "codebook": "in row "}
    for name, tensor in tensors.items():
        row, kept = seed % len(tensor), tensor.clone()
        tensor[row, seed % dim] = fault
        for count in (1, 2):
            with threads(count), pytest.raises(ValueError, match=re.escape(f"{words[name]}{row}") + r"\b"):
                nearest_codes(**tensors)
        tensor.copy_(kept)


@draws(40)
@given(seeds, st.integers(1, 16), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 1e4]))
def test_a_few_ulps_from_the_middle_of_two_codes(seed: int, dim: int, ulps: int, offset: float) -> None:
    codebook = offset + vectors(12, dim, seed=seed)
    z = (codebook[::2] + codebook[1::2]) / 2
    for _ in range(abs(ulps)):
        z = torch.nextafter(z, torch.full_like(z, INF if ulps > 0 else -INF))
    assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook))


@draws(30)
@given(st.data(), st.integers(1, 4))
def test_any_float32_that_is_finite(data: st.DataObject, dim: int) -> None:
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows = st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=1, max_size=6)
    z, codebook = torch.tensor(data.draw(rows)), torch.tensor(data.draw(rows))
    assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook))


def test_codes_whose_squares_overflow() -> None:
    assert nearest_codes(torch.tensor([[1.7e19]]), torch.tensor([[1.9e19], [0.0]])).tolist() == [0]
    for z in (-1.0, 0.0, 1.0):
        with pytest.raises(ValueError, match="codebook holds NaN or infinity in row 0"):
            nearest_codes(torch.tensor([[z]]), torch.tensor([[INF], [0.0]]))


@pytest.mark.parametrize("scale", [1e-320, 1e-310, 1e-170, 1e-161, 1e160, 1e300])
def test_float64_at_the_ends_of_its_range(scale: float) -> None:
    z, codebook = (scale * vectors(50, 4, seed=s, dtype=torch.float64) for s in (0, 1))
    assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_codebook_may_have_any_dtype(dtype: torch.dtype) -> None:
    z, codebook = vectors(40, 6), vectors(30, 6, seed=1).to(dtype)
    assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook))


def test_threads_and_chunks_at_a_size_where_they_matter(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of this size is split over threads, and the doubtful rows (codes come in pairs) fill several chunks."""
    codebook = 1.0 + 1e-4 * vectors(128, 16).repeat(2, 1)
    z = 1.0 + 1e-4 * vectors(3000, 16, seed=1)
    expected = _expected(z, codebook)
    for count in (1, 2, 3):
        with threads(count):
            for scores in (1, 1000, 2**17, 2**20) if path == "chunked" else (2**20,):
                monkeypatch.setattr(chunked, "_CHUNK_CPU", scores)
                rows = slice(None) if scores > 1000 else slice(100)  # a chunk of one row is slow
                assert torch.equal(nearest_codes(z[rows], codebook), expected[rows]), (count, scores)


def test_a_product_that_may_be_rounded_to_bfloat16_is_not_trusted() -> None:
    """Which processors do round at medium precision is theirs to choose; that the search then asks float64 is not."""
    assert chunked._products_are_float32()
    with medium_precision():
        assert not chunked._products_are_float32()


def test_shapes_are_kept_and_no_gradient_is_asked() -> None:
    codebook = vectors(5, 3).requires_grad_()
    for shape in ((), (0,), (4,), (2, 0), (2, 3, 4)):
        indices = nearest_codes(vectors(*shape, 3).requires_grad_(), codebook)
        assert indices.shape == shape
        assert indices.dtype == torch.int64
    strided = vectors(3, 7).T
    for z in (strided, strided[::2], vectors(7, 5)[:, 1:4], vectors(1, 3).expand(4, 3)):
        assert torch.equal(nearest_codes(z, codebook), _expected(z, codebook.detach()))
        assert torch.equal(nearest_codes(codebook, z), _expected(codebook.detach(), z))


def test_the_operators_agree_with_their_descriptions() -> None:
    """That schema and shapes told to the compiler are those of the code."""
    checks = ("test_schema", "test_faketensor")
    z, codebook = vectors(6, 3), vectors(5, 3, seed=1)
    for operator, args in (
        (torch.ops.vqkit.nearest_codes.default, (z, codebook)),
        (torch.ops.vqkit.sample_rows.default, (z, torch.ones(6), torch.tensor(3), 4)),
        (torch.ops.vqkit.checked_indices.default, (torch.tensor([0, -1, 4]), 5)),
    ):
        torch.library.opcheck(operator, args, test_utils=checks)


def test_squared_distances_to() -> None:
    z, codebook = 1e4 + vectors(20, 6), 1e4 + vectors(9, 6, seed=1)
    indices = nearest_codes(z, codebook)
    expected = reference.squared_distances(z.numpy(), codebook.numpy())[np.arange(20), indices]
    np.testing.assert_allclose(squared_distances_to(z, codebook, indices).numpy(), expected, rtol=1e-14)
    with pytest.raises(ValueError, match=r"^indices has shape \(3,\)"):
        squared_distances_to(z, codebook, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), r"^z has shape \(2, 3\), but the codes have 5 dimensions"),
        (torch.zeros(()), torch.zeros(4, 5), r"^z has shape \(\)"),
        (torch.zeros(2, 3), torch.zeros(0, 3), r"^codebook has shape \(0, 3\)"),
        (torch.zeros(2, 3), torch.zeros(3), r"^codebook has shape \(3,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 3), r"^z has dtype torch.int64"),
        (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.int32), r"^codebook has dtype torch.int32"),
        (torch.tensor([[0.0], [NAN], [INF]]), torch.zeros(4, 1), r"^z holds NaN or infinity in 2 of 3 .* vector 1 "),
        (torch.tensor([[0.0], [INF]]), torch.zeros(1, 1), r"^z holds NaN or infinity in 1 of 2"),
        (torch.tensor([[-INF]]).half(), torch.zeros(2, 1), r"^z holds NaN or infinity in 1 of 1"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [NAN]]), r"^codebook holds NaN or infinity in row 1"),
        (torch.zeros(2, 1), torch.tensor([[INF], [0.0]]), r"^codebook holds NaN or infinity in row 0"),
        (torch.zeros(2, 1), torch.tensor([[NAN]]), r"^codebook holds NaN or infinity in row 0"),
    ],
)
def test_errors_name_the_argument_and_its_value(z: torch.Tensor, codebook: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_codes(z, codebook)


def test_one_bad_vector_among_many_chunks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CHUNK_CPU", 64)
    z = vectors(500, 4)
    z[321, 2] = NAN
    with pytest.raises(ValueError, match="first is vector 321 "):
        nearest_codes(z, vectors(16, 4, seed=1))


def test_what_an_accelerator_counts_where_the_search_cannot_raise() -> None:
    """A vector that is not finite counts in the first entry, and in nothing else; a masked one in nothing at all."""
    residual = vectors(5, 2)
    residual[1, 0], residual[3, 1] = NAN, -INF
    mask = torch.tensor([True, True, True, False, True])
    for given_mask, faults, kept in ((None, 2, [0, 2, 4]), (mask, 1, [0, 2, 4])):
        flat = torch.zeros(3)
        finite = _without_faults(flat, residual, given_mask)
        assert flat.tolist() == [faults, 0, 0]
        assert finite.nonzero()[:, 0].tolist() == kept
    indices = torch.tensor([0, 2, 2, 1, 0])
    found = statistics_of(residual, indices, finite, codes=3, size=1 + 3 + 6)
    assert found[1:4].tolist() == [2, 0, 1]
    assert torch.equal(found[4:].view(3, 2)[0], residual[0] + residual[4])
    assert torch.isfinite(found).all()
