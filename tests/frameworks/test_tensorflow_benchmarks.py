"""The race of ``benchmarks.frameworks`` is fair: both contenders take the same step."""

from __future__ import annotations

import benchmarks.frameworks as race
import numpy as np
import pytest
import tensorflow as tf
from benchmarks import onehot_tensorflow as side


@pytest.mark.parametrize("learns", ["EMA", "gradient"])
def test_the_one_hot_layer_and_ours_take_the_same_step(learns: str) -> None:
    rng = np.random.default_rng(0)
    z, codes = tf.constant(rng.standard_normal((200, 8)), tf.float32), rng.standard_normal((16, 8)).astype("float32")
    found = {}
    for name in ("one-hot", "ours"):
        layer = side.LAYERS[f"{name}, {learns}"](codes)
        layer.build(z.shape)
        with tf.GradientTape() as tape:
            tape.watch(z)
            z_q = layer(z, training=True)
            loss = tf.reduce_mean(z_q**2) + sum(layer.losses)
        at_z, *at_codes = tape.gradient(loss, [z, *layer.trainable_variables])
        codebook = layer.codebook.numpy()
        arrays = [z_q, loss, at_z, codebook.T if name == "one-hot" else codebook, *at_codes]
        arrays[4:] = [np.transpose(tf.convert_to_tensor(g)) if name == "one-hot" else tf.convert_to_tensor(g)
                      for g in at_codes]  # fmt: skip
        found[name] = arrays
    for one_hot, ours in zip(found["one-hot"], found["ours"], strict=True):
        np.testing.assert_allclose(one_hot, ours, rtol=1e-4, atol=1e-5)
    assert (abs(found["ours"][3] - codes).max() > 0.001) == (learns == "EMA")


def test_the_race_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCH": 64, "ROUNDS": 1, "WARM_UP": 0, "LAYERS": ("one-hot, EMA", "ours, EMA")}.items():
        monkeypatch.setattr(race, name, value)
    assert {len(seconds) for seconds in race.times(side).values()} == {1}
