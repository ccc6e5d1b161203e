"""``tf.distribute.MirroredStrategy`` on two logical CPU devices, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
import vqkit
from vqkit.keras import VQVAE, VectorQuantizer
from vqkit.models import Patchwise

rng = np.random.default_rng(0)
x = rng.standard_normal((32, 4)).astype("float32")
codes = np.concatenate([rng.standard_normal((12, 4)), np.full((4, 4), 50.0)]).astype("float32")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def dense(**slots):
    keras.utils.set_random_seed(0)
    quantizers = [VectorQuantizer(16, start=vqkit.Given(codes), name=name, **slots) for name in ("first", "second")]
    encoder = keras.layers.Dense(4, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((4,)), encoder, quantizers[0], keras.layers.Dense(4), quantizers[1]])
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return model


def masked(**slots):
    inputs = keras.Input((1, 4))
    model = keras.Model(inputs, VectorQuantizer(16, start=vqkit.Given(codes), **slots)(keras.layers.Masking()(inputs)))
    model.compile("sgd", "mse", jit_compile=False)
    return model


def autoencoder():
    keras.utils.set_random_seed(1)
    architecture = Patchwise(stride=2, hidden=4, encoder_blocks=0, decoder_blocks=0)
    sizes, start = {"channels": 1, "dim": 2, "codebook_size": 4}, vqkit.Normal(0.1)
    model = VQVAE.of(architecture=architecture, **sizes, start=start, seed=2, revival=vqkit.NoRevival())
    model.compile(keras.optimizers.SGD(0.5), jit_compile=False)  # Adam hides a gradient that is twice too long
    return model


def compare(make, x, **slots):
    with strategy.scope():
        two = make(**slots)
    one = make(**slots)
    one.run_eagerly = True  # quicker than to build its graph
    before = one.get_weights()
    logs = [model.fit(x, x, batch_size=16, epochs=2, shuffle=False, verbose=0).history for model in (two, one)]
    differ = {}
    for mirrored, plain in zip(two.weights, one.weights, strict=True):
        first, second = (np.array(value.numpy()) for value in mirrored.value.values)
        differ[plain.path] = [bool((first == second).all()), float(np.abs(first - plain.numpy()).max())]
    logs = {name: float(np.abs(np.array(logs[0][name]) - logs[1][name]).max()) for name in logs[1]}
    moves = [np.abs(w - old).max() for w, old in zip(one.weights, before) if w.name == "codebook"]
    return {"weights": differ, "logs": logs, "moved": float(max(moves))}


part = x[:, None].copy()
part[16:24] = 0  # of the second batch one replica has nothing that counts
print(json.dumps({
    "ema": compare(dense, x, update=vqkit.EMA(0.9)),
    "gradient": compare(dense, x),
    "revival": compare(masked, part, update=vqkit.EMA(0.9), revival=vqkit.Reseed(after=1.0)),
    "autoencoder": compare(autoencoder, rng.random((32, 4, 4, 1), "float32")),
}))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    program = tmp_path_factory.mktemp("mirrored") / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["ema", "gradient", "revival", "autoencoder"])
def test_replicas_agree_and_learn_what_one_device_learns(measured: dict, case: str) -> None:
    """The codebooks of both are the same to the bit, and those of one device that has the whole batch, to rounding."""
    for path, (alike, difference) in measured[case]["weights"].items():
        assert alike, path
        assert difference < 2e-5, path
    assert measured[case]["moved"] > (40 if case == "revival" else 1e-3)  # the dead codes lie at 50


@pytest.mark.parametrize("case", ["ema", "gradient", "autoencoder"])
def test_figures_and_losses_are_of_the_whole_batch(measured: dict, case: str) -> None:
    """Also with two quantizers, where each replica's losses wait for the other in the middle of a forward pass."""
    assert {name for name, difference in measured[case]["logs"].items() if difference > 1e-4} == set()
