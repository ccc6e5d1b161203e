"""The sample of vectors that starts and revivals draw on, and k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vqkit
from tests.zoo import vectors
from vqkit import reference
from vqkit.functional.kmeans import kmeans
from vqkit.functional.sampling import sample_rows

KEY = torch.tensor(3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(rows: Tensor, key: Tensor, size: int) -> Tensor:
    """The vectors of a sample of rows that count once each."""
    return sample_rows(rows, torch.ones(len(rows), dtype=rows.dtype), key, size)[:, :-1]


def clustered(points: Tensor, codes: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k-means of points that count once each."""
    return kmeans(points, torch.ones(len(points)), codes, iterations, generator)


def as_set(rows: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in rows}


# --- the sample ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 9),
    size=st.integers(0, 50),
    key=st.integers(-(2**62), 2**62),
    seed=st.integers(0, 999),
    double=st.booleans(),
)
def test_a_sample_is_of_the_rows_whatever_their_order_split_and_repetition(
    rows: int, dim: int, size: int, key: int, seed: int, double: bool
) -> None:
    z = vectors(rows, dim, seed=seed, dtype=torch.float64 if double else torch.float32)
    key_ = torch.tensor(key)
    sample = sampled(z, key_, size)
    assert sample.shape == (size, dim)
    assert sample.dtype == z.dtype
    drawn = min(size, rows)
    assert torch.isfinite(sample[:drawn]).all()
    assert torch.isnan(sample[drawn:]).all()
    assert len(as_set(sample[:drawn])) == drawn
    assert as_set(sample[:drawn]) <= as_set(z)

    def same(other: Tensor) -> bool:
        return torch.equal(sample[:drawn], other[:drawn]) and bool(torch.isnan(other[drawn:]).all())

    order = torch.randperm(rows, generator=generator(seed))
    assert same(sampled(z[order], key_, size))
    assert same(sampled(torch.cat([z, z[: rows // 2], z]), key_, size))
    cut = rows // 3
    parts = [sampled(part, key_, size) for part in (z[:cut], z[cut:], z[:0])]
    assert same(sampled(torch.cat(parts), key_, size)), "samples do not merge into the sample of the union"


def test_what_is_not_finite_is_passed_over() -> None:
    z = vectors(10, 4)
    faulty = torch.cat([z, torch.full((1, 4), torch.nan), torch.tensor([[1.0, torch.inf, 0.0, 0.0]])])
    assert torch.equal(sampled(faulty, KEY, 8), sampled(z, KEY, 8))


def test_zero_has_one_sign() -> None:
    z = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    sample = sampled(z, KEY, 2)
    assert torch.isfinite(sample).all(1).sum() == 1


@pytest.mark.parametrize("structure", ["normal", "one entry apart", "multiples", "small integers"])
def test_over_keys_every_row_is_as_likely_as_any_other(structure: str) -> None:
    """1,000 keys draw 8 of 32 rows: each is drawn 250 times but for chance, chi-squared below its 99.9 % quantile.

    Rows that differ in little are where a weak hash would show. The draws of one key are without replacement, which
    only narrows the spread: 31 degrees of freedom, times 24/32.
    """
    count, size, keys = 32, 8, 1000
    steps = torch.arange(count, dtype=torch.float32)[:, None]
    rows = {
        "normal": vectors(count, 6),
        "one entry apart": torch.cat([torch.ones(count, 5), 1 + steps * 2**-23], 1),
        "multiples": (1 + steps) * torch.ones(count, 6),
        "small integers": torch.cat([steps // 8, steps % 8], 1),
    }[structure]
    drawn, first, pairs = np.zeros(count), np.zeros(count), np.zeros((count, count))
    index = {row.numpy().tobytes(): k for k, row in enumerate(rows)}
    for key in range(keys):
        chosen = [index[row.numpy().tobytes()] for row in sampled(rows, torch.tensor(key * 0x632BE59B), size)]
        drawn[chosen] += 1
        first[chosen[0]] += 1
        pairs[np.ix_(chosen, chosen)] += 1
    quantile = 61.1  # of chi-squared with 31 degrees of freedom, at 99.9 %
    expected = keys * size / count
    assert ((drawn - expected) ** 2 / expected).sum() < quantile * (1 - size / count)
    assert ((first - keys / count) ** 2 / (keys / count)).sum() < quantile
    together = pairs[~np.eye(count, dtype=bool)]  # 56.5 expected, standard deviation 7.3
    assert np.abs(together - keys * size * (size - 1) / (count * (count - 1))).max() < 5 * 7.3


def test_samples_of_two_keys_differ() -> None:
    z = vectors(1000, 4)
    one, other = (as_set(sampled(z, torch.tensor(key), 100)) for key in (1, 2))
    assert 0 < len(one & other) < 30  # 10 expected


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 30), size=st.integers(1, 30), seed=st.integers(0, 999), cut=st.integers(0, 90))
def test_a_sample_knows_how_often_each_vector_occurred_in_the_union(rows: int, size: int, seed: int, cut: int) -> None:
    distinct = vectors(rows, 3, seed=seed)
    z = distinct[torch.randint(rows, (90,), generator=generator(seed))]
    parts = [sample_rows(part, torch.ones(len(part)), KEY, size) for part in (z[:cut], z[cut:])]
    both = torch.cat(parts)
    sample = sample_rows(both[:, :-1], both[:, -1], KEY, size)
    drawn = sample[torch.isfinite(sample).all(1)]
    assert len(drawn) == min(size, len(as_set(z)))
    for row in drawn:
        assert row[-1] == (z == row[:-1]).all(1).sum()


# --- k-means ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    points=st.integers(1, 60), codes=st.integers(1, 20), dim=st.integers(1, 6), seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 100.0]),
)  # fmt: skip
def test_kmeans_ends_at_a_fixed_point_with_its_counts(
    points: int, codes: int, dim: int, seed: int, offset: float
) -> None:
    z = vectors(points, dim, seed=seed) + offset
    centres, counts = clustered(z, codes, 60, generator(seed))
    assert centres.shape == (codes, dim)
    assert len(centres.unique(dim=0)) == codes, "two centres are equal"
    chosen = reference.nearest(z.double().numpy(), centres.double().numpy())
    assert np.array_equal(counts, np.bincount(chosen, minlength=codes))
    moved = reference.lloyd(z.double().numpy(), centres.double().numpy())
    assert np.abs(moved - centres.double().numpy()).max() < 1e-4 * (1 + offset)
    assert (counts > 0).sum() == min(points, codes), "a centre is wasted"


def test_kmeans_does_not_do_worse_than_the_points_it_began_with() -> None:
    z = vectors(500, 4)
    errors = []
    for iterations in (1, 3, 10, 30):
        centres, _ = clustered(z, 20, iterations, generator())
        errors.append(torch.cdist(z, centres).min(1).values.square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize(("points", "codes", "dim", "seed"), [(100, 40, 2, 69), (100, 40, 2, 95), (200, 50, 1, 88)])
def test_kmeans_moves_a_centre_that_loses_its_points(points: int, codes: int, dim: int, seed: int) -> None:
    """One start in a hundred ends with an empty centre if nothing moves it; these do."""
    _, counts = clustered(vectors(points, dim, seed=seed), codes, 20, generator(seed))
    assert (counts > 0).all()


def test_kmeans_with_equal_points_and_with_none() -> None:
    centres, counts = clustered(torch.full((7, 3), 2.0), 4, 5, generator())
    assert (centres[0] == 2).all()
    assert len(centres.unique(dim=0)) == 4
    assert (centres - 2).abs().max() < 0.1
    assert counts.tolist() == [7, 0, 0, 0]
    with pytest.raises(ValueError, match="points is empty"):
        clustered(torch.empty(0, 3), 4, 5, generator())


def test_kmeans_is_a_function_of_points_and_generator() -> None:
    z = vectors(200, 4)
    first, again, other = (clustered(z, 10, 5, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("start", [vqkit.Normal(), vqkit.Uniform()])
def test_a_start_is_a_function_of_the_seed(start: vqkit.Normal | vqkit.Uniform) -> None:
    first, again, other = (vqkit.VectorQuantizer(4, 8, start=start, seed=seed).codebook for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_kmeans_weighs_points_as_if_repeated() -> None:
    z, weights = vectors(60, 3), torch.randint(1, 9, (60,), generator=generator()).float()
    centres, sizes = kmeans(z, weights, 7, 60, generator())
    repeated = z.repeat_interleave(weights.long(), dim=0).double().numpy()
    assert sizes.sum() == weights.sum()
    assert np.abs(reference.lloyd(repeated, centres.double().numpy()) - centres.double().numpy()).max() < 1e-5


def test_a_start_weighs_vectors_that_repeat() -> None:
    """900 of 1000 vectors are zero, as the blank patches of digits are."""
    vq = vqkit.VectorQuantizer(2, 4, update=vqkit.EMA(), start=vqkit.KMeans(vectors_per_code=32), seed=0)
    z = torch.zeros(1000, 2)
    z[:100] = vectors(100, 2) + 5
    vq(z.requires_grad_()).loss.backward()
    vqkit.step(vq)
    nearest = vq.codebook.norm(dim=1).argmin()
    assert vq.codebook[nearest].norm() < 1e-6
    assert vq.n[nearest] == 900
    assert vq.n.sum() == 1000
