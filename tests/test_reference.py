"""``reference.py`` against independent definitions: exact fractions, plain loops, finite differences."""

from __future__ import annotations

from fractions import Fraction
from math import log2

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.law import draws
from vqkit import reference

seeds = st.integers(0, 10**6)
small = st.integers(-3, 3)


def _drawn(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for shape in shapes]


def _points(columns: int, most: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(small, min_size=columns, max_size=columns), min_size=1, max_size=most)


# --- search -------------------------------------------------------------------------------------------------------


@draws(50)
@given(_points(3, 6), _points(3, 6))
def test_nearest_on_integers_is_exact_and_takes_the_lowest_of_equals(z: list, codes: list) -> None:
    for n, k in enumerate(reference.nearest(np.array(z, float), np.array(codes, float))):
        exact = [sum((a - b) ** 2 for a, b in zip(z[n], code, strict=True)) for code in codes]
        assert k == exact.index(min(exact))


@draws(30)
@given(seeds, st.sampled_from([0.0, 1.0, 1e4, 1e8]), st.integers(1, 12))
def test_distances_are_the_sum_in_order_of_d(seed: int, offset: float, dim: int) -> None:
    z, codes = (offset + x for x in _drawn(seed, (4, dim), (5, dim)))
    found = reference.squared_distances(z, codes)
    for n in range(4):
        for k in range(5):
            total = 0.0
            for d in range(dim):
                difference = float(z[n, d]) - float(codes[k, d])
                total += difference * difference
            assert found[n, k] == total
            exact = sum((Fraction(float(z[n, d])) - Fraction(float(codes[k, d]))) ** 2 for d in range(dim))
            assert abs(Fraction(total) - exact) <= exact * (dim + 3) * Fraction(1, 2**52)


def test_float32_input_is_widened_before_it_is_subtracted() -> None:
    z = np.full((1, 1), 2.0**24, np.float32)
    assert reference.squared_distances(z, np.full((1, 1), -1.0, np.float32)) == (2.0**24 + 1) ** 2


def test_padding_is_zeros() -> None:
    codes = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert reference.look_up(codes, np.array([1, -1, 0])).tolist() == [[3, 4], [0, 0], [1, 2]]


# --- estimators ---------------------------------------------------------------------------------------------------


@draws(30)
@given(seeds, st.integers(2, 6))
def test_rotation_takes_z_to_its_code_and_keeps_lengths(seed: int, dim: int) -> None:
    z, q, g = _drawn(seed, (1, dim), (1, dim), (1, dim))
    transposed = np.stack([reference.rotation_trick(row[None], z, q, max_gain=1e9)[0] for row in np.eye(dim)])
    map_DD = transposed  # row i is M^T e_i, which is row i of M
    scale = np.linalg.norm(q) / np.linalg.norm(z)
    np.testing.assert_allclose(map_DD @ z[0], q[0], atol=1e-12)
    np.testing.assert_allclose(map_DD @ map_DD.T, scale**2 * np.eye(dim), atol=1e-10 * scale**2)
    np.testing.assert_allclose(np.linalg.det(map_DD / scale), 1.0)
    across = g[0] - _plane(z[0], q[0]) @ g[0]  # what is orthogonal to z and q is scaled only
    np.testing.assert_allclose(map_DD @ across, scale * across, atol=1e-10 * scale)


def _plane(z: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The projection onto the plane of z and q."""
    basis, _ = np.linalg.qr(np.stack([z, q], 1))
    return basis @ basis.T


def test_rotation_is_completed_where_it_is_undefined() -> None:
    g, e, zero = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.zeros((1, 2))
    np.testing.assert_array_equal(reference.rotation_trick(g, zero, e), g)
    np.testing.assert_array_equal(reference.rotation_trick(g, e, zero), g)
    np.testing.assert_allclose(reference.rotation_trick(g, -2 * e, e), g / 2)
    np.testing.assert_allclose(reference.rotation_trick(g, 1e-9 * e, e), 10 * g)
    np.testing.assert_allclose(reference.rotation_trick(g, e, e), g, atol=1e-15)


def test_straight_through_copies() -> None:
    g, z, q = _drawn(0, (3, 2), (3, 2), (3, 2))
    found = reference.straight_through(g, z, q)
    assert found.tolist() == g.tolist()
    assert found is not g


# --- losses -------------------------------------------------------------------------------------------------------


@draws(50)
@given(_points(2, 5), _points(2, 4), st.data())
def test_losses_on_integers(z: list, codes: list, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(-1, len(codes) - 1), min_size=len(z), max_size=len(z)))
    squares = [Fraction((z[n][d] - codes[k][d]) ** 2) for n, k in enumerate(indices) if k >= 0 for d in range(2)]
    mean = sum(squares) / len(squares) if squares else Fraction(0)
    codebook, commitment = reference.losses(np.array(z), np.array(codes), np.array(indices), beta=0.25)
    assert np.isclose(codebook, float(mean), rtol=1e-15)
    assert np.isclose(commitment, float(mean / 4), rtol=1e-15)


@draws(20)
@given(seeds)
def test_gradients_of_losses_by_finite_differences(seed: int) -> None:
    z, codes = _drawn(seed, (5, 3), (4, 3))
    indices = np.random.default_rng(seed).integers(-1, 4, 5)
    if not (indices >= 0).any():
        return
    of_z, of_codes = reference.losses_gradient(z, codes, indices, beta=0.7)
    for point, gradient, term in ((z, of_z, 1), (codes, of_codes, 0)):
        for at in np.ndindex(*point.shape):
            sides = []
            for move in (1e-6, -1e-6):
                moved = point.copy()
                moved[at] += move
                pair = (moved, codes) if point is z else (z, moved)
                sides.append(reference.losses(*pair, indices, beta=0.7)[term])
            assert abs((sides[0] - sides[1]) / 2e-6 - gradient[at]) < 1e-8


def test_nothing_chosen_gives_zeros() -> None:
    z, codes = _drawn(0, (3, 2), (4, 2))
    nothing = np.full(3, -1)
    assert reference.losses(z, codes, nothing, 0.25) == (0.0, 0.0)
    assert not any(gradient.any() for gradient in reference.losses_gradient(z, codes, nothing, 0.25))


# --- learning -----------------------------------------------------------------------------------------------------


@draws(30)
@given(_points(2, 6), _points(2, 3), st.integers(0, 3), st.sampled_from([0, Fraction(1, 2), Fraction(3, 4)]))
def test_ema_is_the_published_rule(z: list, codes: list, past: int, decay: Fraction) -> None:
    """``n' = d n + (1-d) c``, ``m' = d m + (1-d) sum z``, ``e' = m'/n'``, in exact fractions."""
    indices = reference.nearest(np.array(z, float), np.array(codes, float))
    counts, sums = reference.statistics(np.array(z, float), np.array(codes, float), indices)
    codebook, n = reference.ema(np.array(codes), np.full(len(codes), float(past)), counts, sums, float(decay))
    for k, code in enumerate(codes):
        chose = [z[i] for i in range(len(z)) if indices[i] == k]
        assert counts[k] == len(chose)
        assert n[k] == float(decay * past + (1 - decay) * len(chose))
        if not chose:
            assert codebook[k].tolist() == code
            continue
        new = decay * past + (1 - decay) * len(chose)
        for d in range(2):
            moment = decay * past * code[d] + (1 - decay) * sum(row[d] for row in chose)
            assert np.isclose(codebook[k, d], float(moment / new), rtol=1e-14, atol=1e-14)


@draws(20)
@given(seeds)
def test_lloyd_is_ema_without_memory_and_never_raises_the_distortion(seed: int) -> None:
    z, codes = _drawn(seed, (20, 2), (5, 2))
    moved = reference.lloyd(z, codes)
    counts, sums = reference.statistics(z, codes, reference.nearest(z, codes))
    np.testing.assert_allclose(reference.ema(codes, np.ones(5), counts, sums, 0.0)[0], moved, atol=1e-12)
    before, after = (reference.squared_distances(z, e).min(1).sum() for e in (codes, moved))
    assert after <= before + 1e-12


def test_idle_counts_tokens() -> None:
    idle = reference.idle(np.array([5, 0, 7]), np.array([0, 3, 1]))
    assert idle.tolist() == [9, 0, 0]


# --- use ----------------------------------------------------------------------------------------------------------


@draws(50)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_perplexity_is_two_to_the_entropy(counts: list[int]) -> None:
    total, used = sum(counts), sum(c > 0 for c in counts)
    bits = sum(c / total * log2(total / c) for c in counts if c)
    found = reference.perplexity(np.array(counts))
    assert np.isclose(found, 2**bits if total else 0.0)
    assert found <= used * (1 + 1e-12)
    assert reference.usage(np.array(counts)) == used / len(counts)
