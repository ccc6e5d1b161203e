"""Values, losses and gradients: what every framework's quantizer gives, against ``reference.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vqkit
from tests.frameworks.adapter import Adapter, Forward, Quantizer
from tests.frameworks.cases import (
    SITUATIONS,
    SITUATIONS_64,
    D,
    K,
    N,
    close,
    draws,
    normal,
    rounded,
    same_bits,
)
from vqkit import reference

UPDATES = {"gradient": vqkit.Gradient(), "ema": vqkit.EMA(0.9), "frozen": vqkit.Frozen()}
ESTIMATORS = {
    "straight-through": (vqkit.StraightThrough(), reference.straight_through),
    "rotation": (vqkit.RotationTrick(), reference.rotation_trick),
}
MASK = np.arange(N) % 3 != 0


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_nearest_code_is_chosen(held: Callable[..., Quantizer], situation: str, form: str) -> None:
    for seed in range(2):
        z, codes = SITUATIONS[situation](seed, N, K, D)
        found = held(codes).forward(z, form=form)
        wrong = int((found.indices != reference.nearest(z, codes)).sum())
        assert wrong == 0, f"{wrong} of {N} codes are wrong"
        same_bits(found.z_q, codes[found.indices], "z_q and the rows of the codebook")


def test_the_nearest_code_is_chosen_in_float64(framework: Adapter, held: Callable[..., Quantizer]) -> None:
    for situation, draw in SITUATIONS_64.items():
        z, codes = draw(0, N, K, D)
        if "float64" in framework.dtypes:
            found = held(codes).forward(z)
            assert (found.indices == reference.nearest(z, codes)).all(), situation
            same_bits(found.z_q, codes[found.indices], f"z_q and the rows of the codebook, {situation},")


def test_any_shape(framework: Adapter) -> None:
    @draws(2)
    @given(st.integers(0, 10**6), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 9), st.integers(1, 5))
    def any_shape(seed: int, shape: list[int], codes: int, dim: int) -> None:
        z, table = normal(*shape, dim, seed=seed), normal(codes, dim, seed=seed + 1)
        found = framework.make(table).forward(z, training=seed % 2 == 0)
        assert found.indices.shape == tuple(shape)
        assert (found.indices.reshape(-1) == reference.nearest(flat(z), table)).all()
        same_bits(found.z_q, table[found.indices], "z_q and the rows of the codebook")

    any_shape()


def test_half_precision_is_searched_in_float32(framework: Adapter, half: str) -> None:
    codes = 2 + np.float32(0.003) * normal(K, D, seed=1)
    z = rounded(2 + np.float32(0.1) * normal(N, D), half)
    found = framework.make(codes).forward(z, cast=half, training=True)
    assert found.dtype == half, f"z_q is {found.dtype} for z in {half}"
    expected = reference.nearest(z, codes)
    assert (found.indices == expected).all()
    assert (found.z_q == rounded(codes, half)[expected]).all(), "z_q is not the code, rounded once"
    assert (reference.nearest(z, rounded(codes, half)) != expected).any(), "rounded codes would do as well"
    codebook, commitment = reference.losses(z, codes, expected, 0.25)
    close([found.codebook, found.commitment], [codebook, commitment], "float32", "the losses")


def test_indices_make_the_round_trip(framework: Adapter) -> None:
    codes, z = normal(K, D, seed=1), normal(4, N // 4, D)
    vq = framework.make(codes)
    indices = vq.encode(z)
    assert np.issubdtype(indices.dtype, np.integer)
    same_bits(vq.decode(indices), vq.forward(z).z_q, "decode(encode(z)) and the forward pass")
    assert (vq.encode(np.resize(codes, z.shape)).reshape(-1) == np.resize(np.arange(K), N)).all()
    masked = np.arange(N).reshape(4, -1) % 2 == 0
    padded = vq.encode(z, masked)
    assert (padded == np.where(masked, indices, -1)).all()
    same_bits(vq.decode(padded), np.where(masked[..., None], codes[indices], 0), "decoded padding, which is zero,")


# --- losses and gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("update", UPDATES)
def test_losses(framework: Adapter, update: str, masked: bool, dtype: str) -> None:
    codes, z = normal(K, D, seed=1, dtype=dtype), 2 * normal(N, D, dtype=dtype)
    found = framework.make(codes, update=UPDATES[update], commitment=0.7, dtype=dtype).forward(
        z, MASK if masked else None, training=True
    )
    indices = np.where(MASK, reference.nearest(z, codes), -1) if masked else reference.nearest(z, codes)
    assert (found.indices == indices).all()
    codebook, commitment = reference.losses(z, codes, indices, 0.7)
    total = commitment + (codebook if update == "gradient" else 0)
    for name, expected in (("codebook", codebook), ("commitment", commitment), ("total", total)):
        close(getattr(found, name), expected, dtype, f"the {name} loss")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("update", UPDATES)
def test_gradients(framework: Adapter, update: str, estimator: str, masked: bool, dtype: str) -> None:
    check_gradients(framework, update, estimator, masked, dtype, "eager")


@pytest.mark.parametrize(
    "update, estimator, masked", [("gradient", "rotation", True), ("ema", "straight-through", False)]
)
def test_gradients_in_every_form(framework: Adapter, update: str, estimator: str, masked: bool, form: str) -> None:
    check_gradients(framework, update, estimator, masked, "float32", form)


def check_gradients(framework: Adapter, update: str, estimator: str, masked: bool, dtype: str, form: str) -> None:
    """Of ``sum(z_q g) + total``: to z the estimator's and the commitment's, to the codebook its own loss's alone."""
    codes, z, g = normal(K, D, seed=1, dtype=dtype), 2 * normal(N, D, dtype=dtype), normal(N, D, seed=2, dtype=dtype)
    slot, pull_back = ESTIMATORS[estimator]
    vq = framework.make(codes, update=UPDATES[update], estimator=slot, commitment=0.7, dtype=dtype)
    if masked:
        found = vq.gradients(np.where(MASK[:, None], z, np.array(np.nan, dtype)), g, MASK, form=form)
    else:
        found = vq.gradients(z, g, form=form)
    indices = np.where(MASK, reference.nearest(z, codes), -1) if masked else reference.nearest(z, codes)
    of_z, of_codes = reference.losses_gradient(z, codes, indices, 0.7)
    through = pull_back(g, z.astype(np.float64), reference.look_up(codes, indices).astype(np.float64))
    # Some forty operations: two norms, two dots and a quotient of them.
    close(found.z, np.where((indices >= 0)[:, None], through, 0) + of_z, dtype, "the gradient of z", terms=40)
    # The largest sum has N terms at most.
    close(found.codes, of_codes * (update == "gradient"), dtype, "the gradient of the codebook", terms=N)


def test_gradients_of_vectors_where_a_direction_is_not_defined(framework: Adapter, dtype: str) -> None:
    """At z = 0, e = 0, opposite vectors and tiny ones the rotation's gradient is as defined, and finite."""
    codes = np.concatenate([np.zeros((1, D)), 3 * normal(3, D, seed=1)])
    toward = codes[1]
    points = np.stack([0 * toward, -1e-3 * toward, 1e-12 * toward, 1e-30 * toward, toward, 1.5 * toward])
    z, g = np.resize(points, (N, D)).astype(dtype), normal(N, D, seed=2, dtype=dtype)
    for rows in (codes, codes[1:2]):
        table = np.resize(rows, (K, D)).astype(dtype)
        found = framework.make(table, estimator=vqkit.RotationTrick(), commitment=0.0, dtype=dtype).gradients(z, g)
        q = table[reference.nearest(z, table)]
        expected = reference.rotation_trick(g, z.astype(np.float64), q.astype(np.float64))
        close(found.z, expected, dtype, "the gradient of z", terms=40)


def test_z_gets_its_gradient_in_any_shape(framework: Adapter, dtype: str) -> None:
    codes, z, g = (normal(*shape, D, seed=s, dtype=dtype) for s, shape in ((1, (K,)), (0, (3, 4, 4)), (2, (3, 4, 4))))
    vq = framework.make(codes, estimator=vqkit.RotationTrick(), dtype=dtype)
    apart = vq.gradients(flat(z), flat(g))
    whole = vq.gradients(z, g)
    close(flat(whole.z), apart.z, dtype, "the gradient of z")
    close(whole.codes, apart.codes, dtype, "the gradient of the codebook")


# --- masks, and batches without a vector --------------------------------------------------------------------------


def test_masked_positions_count_nowhere(held: Callable[..., Quantizer], form: str) -> None:
    codes, z = normal(K, D, seed=1), normal(N, D)
    vq, indices = held(codes), np.where(MASK, reference.nearest(z, codes), -1)
    codebook, commitment = reference.losses(z, codes, indices, 0.25)
    for filling in (np.nan, np.inf, 0.0, 1e30):
        found = vq.forward(np.where(MASK[:, None], z, np.float32(filling)), MASK, form=form)
        assert (found.indices == indices).all(), f"with {filling} in masked positions"
        same_bits(found.z_q, reference.look_up(codes, indices).astype(np.float32), "z_q, zero where masked,")
        close(losses_of(found), [codebook, commitment, codebook + commitment], "float32", "the losses")


@pytest.mark.parametrize("shape", [(3, 0), (N,)])
def test_a_batch_without_a_vector_costs_nothing(
    held: Callable[..., Quantizer], shape: tuple[int, ...], form: str
) -> None:
    """Empty, or all of it masked; without a mask too."""
    z, vq = normal(*shape, D), held(normal(K, D, seed=1))
    for mask in (np.zeros(shape, bool), None)[: 2 if 0 in shape else 1]:
        found = vq.forward(z, mask, training=True, form=form)
        assert losses_of(found) == [0, 0, 0]
        assert not found.z_q.any() and found.z_q.shape == z.shape
        assert (found.indices == -1).all() and found.indices.shape == shape
        gradients = vq.gradients(z, np.ones_like(z), mask)
        assert gradients.z.shape == z.shape and not gradients.z.any() and not gradients.codes.any()


def losses_of(found: Forward) -> list[float]:
    return [found.codebook, found.commitment, found.total]


# --- what cannot be right -----------------------------------------------------------------------------------------


def test_what_is_not_finite_raises_or_shows(held: Callable[..., Quantizer], form: str) -> None:
    """Eager: a ValueError that names z. Compiled, where nothing can raise: values of NaN in that row and no other."""
    codes, z = normal(K, D, seed=1), normal(N, D)
    vq, rest = held(codes), np.arange(N) != 5
    for fault in (np.nan, np.inf, -np.inf):
        z[5, 2] = fault
        if form == "eager":
            for call in (vq.forward, vq.encode, vq.learn):
                with pytest.raises(ValueError, match="z holds NaN or infinity"):
                    call(z)
        else:
            found = vq.forward(z, form=form)
            assert np.isnan(found.z_q[5]).all(), f"the value of a row with {fault} is not NaN"
            assert (found.indices[rest] == reference.nearest(z[rest], codes)).all()
            same_bits(found.z_q[rest], codes[found.indices[rest]], "z_q of the other rows")
            assert 0 <= found.indices[5] < K, f"the row's index is {found.indices[5]}, which no lookup can use"


def test_a_wrong_shape_is_named(framework: Adapter) -> None:
    vq = framework.make(normal(K, D, seed=1))
    for z in (normal(N, D + 1), normal(2, D, N)):
        for call in (vq.forward, vq.encode):
            with pytest.raises(ValueError, match=rf"z has shape .*\b{D}\b"):
                call(z)
    with pytest.raises(ValueError, match="mask has shape"):
        vq.forward(normal(N, D), np.ones(N - 1, bool))
    with pytest.raises(ValueError, match="indices"):
        vq.decode(np.array([0, K]))


@pytest.mark.parametrize(
    "slot, value, told",
    [("update", "ema", "EMA"), ("update", vqkit.EMA, "EMA"), ("estimator", "ste", "StraightThrough"),
     ("revival", "reseed", "Reseed"), ("commitment", -1.0, "0.25")],
)  # fmt: skip
def test_an_unknown_object_in_a_slot_is_named(framework: Adapter, slot: str, value: object, told: str) -> None:
    def use() -> None:
        framework.make(normal(K, D, seed=1), **{slot: value}).learn(normal(N, D))

    with pytest.raises(ValueError, match=rf"^(?:{slot}|rule) is .*{told}"):
        use()
