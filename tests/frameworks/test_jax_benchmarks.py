"""The race of ``benchmarks.frameworks`` is fair: both contenders take the same step."""

from __future__ import annotations

import benchmarks.frameworks as race
import jax
import numpy as np
import pytest
from benchmarks import onehot_jax as side


@pytest.mark.parametrize("learns", ["EMA", "gradient"])
def test_the_one_hot_layer_and_ours_take_the_same_step(learns: str) -> None:
    rng = np.random.default_rng(0)
    z, target, codes = (rng.standard_normal((n, 8)).astype("float32") for n in (200, 200, 16))
    found = {}
    for name in ("one-hot", "ours"):
        run, start = side.STEPS[f"{name}, {learns}"]
        state, loss, at_z = run(start(codes), jax.numpy.array(z), target)
        codebook = state[0] if isinstance(state, tuple) else state
        found[name] = [loss, at_z, codebook.T if name == "one-hot" else codebook]
    for one_hot, ours in zip(found["one-hot"], found["ours"], strict=True):
        np.testing.assert_allclose(one_hot, ours, rtol=1e-4, atol=1e-5)
    assert abs(found["ours"][2] - codes).max() > 0.001


def test_the_race_runs_and_counts_wrong_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 64, "ROUNDS": 1, "WARM_UP": 0, "LAYERS": ("one-hot, EMA", "ours, EMA")}.items():
        monkeypatch.setattr(race, name, value)
    assert {len(seconds) for seconds in race.times(side).values()} == {1}
    far = race.wrong(side)["far"]
    assert far["ours"] == 0
    assert far["one-hot"] > 10
