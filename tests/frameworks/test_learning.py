"""How a codebook learns and revives, what it never learns from, and its state, in every framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vqkit
from tests.frameworks.adapter import Adapter, Quantizer
from tests.frameworks.cases import D, K, N, close, normal, same_bits, unchanged
from vqkit import reference

MASK = np.arange(N) % 3 != 0
UPDATES = {"gradient": vqkit.Gradient(), "ema": vqkit.EMA(0.9), "frozen": vqkit.Frozen()}


class Expected:
    """The state as ``reference.py`` has it; of the codebook of that moment, as the framework's own rounding left it."""

    def __init__(self, vq: Quantizer, decay: float | None) -> None:
        self.codebook, self.n, self.usage, self.idle = (
            vq.state()[name].astype(np.float64) for name in ("codebook", "n", "usage", "idle")
        )
        self.decay = decay

    def learn(self, z: np.ndarray, by: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Assigned by the framework's codes, which near a tie may be other than these."""
        indices = reference.nearest(z, by)
        counts, sums = reference.statistics(z, self.codebook, indices if mask is None else np.where(mask, indices, -1))
        if self.decay is not None:
            self.codebook, self.n = reference.ema(self.codebook, self.n, counts, sums, self.decay)
        self.idle = reference.idle(self.idle, counts)
        self.usage = 0.99 * self.usage + counts

    def check(self, vq: Quantizer, dtype: str, what: str) -> None:
        state = vq.state()
        for name in ("codebook", "n", "usage"):
            close(state[name], getattr(self, name), dtype, f"{name} {what}", terms=2 * N)
        assert (state["idle"] == self.idle).all(), f"idle {what}"


def near(codes: np.ndarray) -> np.ndarray:
    """N vectors, each near one of these codes."""
    return (np.resize(codes, (N, D)) + 0.01 * normal(N, D, seed=5)).astype(np.float32)


# --- the exponential moving average -------------------------------------------------------------------------------


def test_twenty_steps_follow_the_recurrence(held: Callable[..., Quantizer], dtype: str, form: str) -> None:
    """From the first on, with batches that drift, so that codes fall idle and come back."""
    vq = held(normal(K, D, seed=1, dtype=dtype), update=vqkit.EMA(0.9))
    expected = Expected(vq, 0.9)
    for step in range(20):
        z = (np.sin(step) + normal(N, D, seed=20 + step)).astype(dtype)
        expected.learn(z, vq.state()["codebook"])
        vq.learn(z, form=form)
        expected.check(vq, dtype, f"after step {step + 1}")


def test_decay_zero_is_a_step_of_lloyd(framework: Adapter, dtype: str) -> None:
    codes, z = normal(K, D, seed=1, dtype=dtype), normal(N, D, dtype=dtype)
    vq = framework.make(codes, update=vqkit.EMA(0.0), dtype=dtype)
    vq.learn(z)
    close(vq.state()["codebook"], reference.lloyd(z, codes), dtype, "the codebook", terms=N)


def test_idle_codes_keep_their_bits(framework: Adapter, held: Callable[..., Quantizer], form: str) -> None:
    """On the first step as on the 300th."""
    codes = 10 * normal(K, D, seed=1)
    vq = held(codes, update=vqkit.EMA(0.9))
    z = near(codes[::2])
    for step in range(300 if form == framework.forms[-1] else 3):
        vq.learn(z, form=form)
        if step == 0:
            same_bits(vq.state()["codebook"][1::2], codes[1::2], "idle codes after the first step")
    same_bits(vq.state()["codebook"][1::2], codes[1::2], "idle codes after the last step")
    assert (vq.state()["codebook"][::2] != codes[::2]).any(1).all(), "codes that were chosen did not move"
    vq.learn(near(codes[1::2]), form=form)
    assert np.isfinite(vq.state()["codebook"]).all(), "a code that is chosen again does not live"


def test_z_q_is_of_the_codebook_before_the_step(framework: Adapter, form: str) -> None:
    codes, z = normal(K, D, seed=1), normal(N, D)
    found = framework.make(codes, update=vqkit.EMA(0.9)).forward(z, training=True, form=form)
    same_bits(found.z_q, codes[reference.nearest(z, codes)], "z_q")
    close(found.codebook, reference.losses(z, codes, found.indices, 1.0)[0], "float32", "the codebook loss")


@pytest.mark.parametrize("update", UPDATES)
def test_usage_and_age_are_counted(framework: Adapter, update: str) -> None:
    """In tokens, whatever the update; where it is not the average, the codebook and n keep their bits."""
    vq = framework.make(normal(K, D, seed=1), update=UPDATES[update])
    before = vq.state()
    expected = Expected(vq, 0.9 if update == "ema" else None)
    for seed in range(3):
        z = 3 + normal(N, D, seed=seed)
        expected.learn(z, vq.state()["codebook"])
        vq.learn(z)
    expected.check(vq, "float32", "after three steps")
    assert (expected.idle > 0).any() and (expected.idle == 0).any()
    if update != "ema":
        for name in ("codebook", "n"):
            same_bits(vq.state()[name], before[name], name)


@pytest.mark.parametrize("update", UPDATES)
def test_evaluation_changes_nothing(framework: Adapter, update: str) -> None:
    vq = framework.make(normal(K, D, seed=1), update=UPDATES[update], revival=_revival(framework, update))
    vq.learn(normal(N, D))
    before = vq.state()
    vq.forward(normal(N, D, seed=3))
    vq.decode(vq.encode(normal(N, D, seed=4)))
    unchanged(before, vq.state(), "evaluation")


def _revival(framework: Adapter, update: str) -> vqkit.NoRevival | vqkit.Reseed:
    return vqkit.Reseed(after=1e-3) if update in framework.revives else vqkit.NoRevival()


# --- what no codebook learns from ---------------------------------------------------------------------------------


def test_nothing_is_learnt_from_masked_positions(held: Callable[..., Quantizer], form: str) -> None:
    z = normal(N, D)
    vq = held(normal(K, D, seed=1), update=vqkit.EMA(0.9))
    expected = Expected(vq, 0.9)
    for filling in (np.nan, np.inf, 0.0, 1e30):
        expected.learn(z, vq.state()["codebook"], MASK)
        vq.learn(np.where(MASK[:, None], z, np.float32(filling)), MASK, form=form)
        expected.check(vq, "float32", f"after a step with {filling} in masked positions")


@pytest.mark.parametrize("update", UPDATES)
def test_a_batch_without_a_vector_is_no_step(framework: Adapter, update: str) -> None:
    vq = framework.make(normal(K, D, seed=1), update=UPDATES[update], revival=_revival(framework, update))
    vq.learn(normal(N, D))
    before = vq.state()
    for shape in ((3, 0), (N,)):
        vq.learn(normal(*shape, D), np.zeros(shape, bool))
        unchanged(before, vq.state(), f"a batch without a vector, {shape},")


def test_an_empty_batch_is_no_step_in_any_form(held: Callable[..., Quantizer], form: str) -> None:
    vq = held(normal(K, D, seed=1), update=vqkit.EMA(0.9))
    before = vq.state()
    vq.learn(normal(3, 0, D), form=form)
    unchanged(before, vq.state(), "an empty batch")


def test_what_is_not_finite_enters_no_codebook(held: Callable[..., Quantizer], form: str) -> None:
    """Eager it raises and leaves no trace; compiled, the step is that of the other vectors."""
    z = normal(N, D)
    vq = held(normal(K, D, seed=1), update=vqkit.EMA(0.9))
    expected = Expected(vq, 0.9)
    for fault in (np.nan, np.inf, -np.inf):
        z[5, 2] = fault
        if form == "eager":
            before = vq.state()
            with pytest.raises(ValueError, match="z holds NaN or infinity"):
                vq.learn(z)
            unchanged(before, vq.state(), f"a step with {fault}, which raised,")
        else:
            expected.learn(z, vq.state()["codebook"], np.arange(N) != 5)
            vq.learn(z, form=form)
            expected.check(vq, "float32", f"after a step with {fault}")


def test_no_code_is_revived_onto_what_is_not_finite(held: Callable[..., Quantizer], form: str) -> None:
    """Four vectors are there to land on, again and again, and one that is none."""
    z = np.resize(normal(4, D), (N, D))
    z[5, 2] = np.nan
    vq = held(100 + normal(K, D, seed=1), update=vqkit.EMA(0.9), revival=vqkit.Reseed(after=1e-3))
    vq.learn(z, np.arange(N) != 5 if form == "eager" else None, form=form)
    for name, values in vq.state().items():
        assert np.isfinite(values).all(), f"{name} holds what is not finite"
    landed = [code for code in vq.state()["codebook"] if (code == z).all(1).any()]
    assert len(landed) == 4, f"{len(landed)} codes landed on four vectors"


# --- revival ------------------------------------------------------------------------------------------------------


def test_a_dead_code_lands_on_a_vector_and_is_chosen(held: Callable[..., Quantizer], revived: str, form: str) -> None:
    codes = 10 * normal(K, D, seed=1)
    vq = held(codes, update=UPDATES[revived], revival=vqkit.Reseed(after=1e-3))  # one batch is a lifetime
    z = (near(codes[::2]) + 2 * normal(N, D, seed=6)).astype(np.float32)
    dead = np.setdiff1d(np.arange(K), reference.nearest(z, codes))
    vq.learn(z, form=form)
    state = vq.state()
    assert len(dead) > 1
    landed = [np.flatnonzero((z == code).all(1)) for code in state["codebook"][dead]]
    assert all(len(at) for at in landed), "a revived code is no vector of the batch"
    assert len(set(np.concatenate(landed))) == len(dead), "two codes were revived onto one vector"
    assert not state["n"][dead].any() and not state["idle"][dead].any()
    assert set(dead) <= set(vq.forward(z, form=form).indices), "a revived code is not chosen by its own vector"
    if revived == "ema":
        by = state["codebook"]
        vq.learn(z, form=form)
        moved, expected = vq.state()["codebook"][dead], reference.lloyd(z, by)[dead]
        close(moved, expected, "float32", "a revived code's first step", terms=N)


def test_at_most_so_many_codes_are_revived_the_longest_idle_first(framework: Adapter) -> None:
    codes = 10 * normal(K, D, seed=1)
    vq = framework.make(codes, update=vqkit.EMA(), revival=vqkit.Reseed(after=2.5 * N / K, at_most=2))
    younger, z = near(codes[[0, 1, 2, 4]]), near(codes[[0, 2, 4]])  # code 1 is chosen at first, and never again
    for step, batch in enumerate((younger, z, z, z, z, z)):
        before = vq.state()["codebook"]
        vq.learn(batch)
        moved = np.setdiff1d(
            np.flatnonzero((vq.state()["codebook"] != before).any(1)), reference.nearest(batch, before)
        )
        assert len(moved) == (0, 0, 2, 2, 2, 2)[step], f"{len(moved)} codes were revived in step {step + 1}"
        assert 1 not in moved, "a code that was chosen once was revived before others"


@pytest.mark.parametrize("size", [N // 4, N // 2, N])
def test_a_code_ages_in_tokens(framework: Adapter, size: int) -> None:
    """Whatever a batch holds, what nothing chooses is revived after 2 N tokens, and not before; padding is no token."""
    codes = 10 * normal(K, D, seed=1)
    vq = framework.make(codes, update=vqkit.EMA(0.9), revival=vqkit.Reseed(after=2 * N / K))
    z, mask = near(codes[::2]), np.arange(N) < size
    for tokens in range(size, 2 * N + 1, size):
        vq.learn(z, mask)
        same = (vq.state()["codebook"][1::2] == codes[1::2]).all(1)
        assert same.all() if tokens < 2 * N else not same.any(), f"after {tokens} tokens"


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
def test_state_makes_the_round_trip(framework: Adapter, update: str, dtype: str, tmp_path: Path) -> None:
    """To the same bits, and what is loaded goes on as the other does."""
    codes = normal(K, D, seed=1, dtype=dtype)
    vq = framework.make(codes, update=UPDATES[update], commitment=0.7, dtype=dtype)
    for seed in range(3):
        vq.learn(normal(N, D, seed=seed, dtype=dtype))
    again = vq.reloaded(tmp_path)
    unchanged(vq.state(), again.state(), "what was saved and loaded:")
    z = normal(N, D, seed=9, dtype=dtype)
    assert again.forward(z).total == vq.forward(z).total
    for each in (vq, again):
        each.learn(z)
    unchanged(vq.state(), again.state(), "a step after loading:")


def test_what_learns_is_float32_at_least(framework: Adapter, dtype: str) -> None:
    state = framework.make(normal(K, D, seed=1), update=vqkit.EMA(), dtype=dtype).state()
    for name in ("codebook", "n"):
        assert state[name].dtype == dtype
