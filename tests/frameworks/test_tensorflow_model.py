"""The autoencoder on two replicas takes the steps that it takes on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import vqkit
from vqkit.keras.vqvae import VQVAE
from vqkit.models import Patchwise

ROOT = Path(__file__).parent.parent.parent
IMAGES = np.random.default_rng(0).random((16, 4, 4, 1), np.float32)


def trained() -> tuple[list[np.ndarray], dict[str, list[float]]]:
    keras.utils.set_random_seed(1)
    architecture = Patchwise(stride=2, hidden=4, encoder_blocks=0, decoder_blocks=0)
    model = VQVAE.of(
        channels=1, architecture=architecture, dim=2, codebook_size=4, start=vqkit.Normal(0.1), seed=2,
        revival=vqkit.NoRevival(),
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5), jit_compile=False)  # Adam hides a gradient that is twice too long
    history = model.fit(IMAGES, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    return [np.asarray(weight.numpy()) for weight in model.trainable_variables], history


def compare() -> None:
    one, figures = trained()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two, mirrored = trained()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name, values in figures.items():
        np.testing.assert_allclose(mirrored[name], values, rtol=1e-4, err_msg=name)


def test_two_replicas_take_the_steps_of_one() -> None:
    """In a process of its own: TensorFlow numbers collectives anew for a second strategy, and those of two collide."""
    code = (
        "import tensorflow as tf; two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], two)\n"
        "from tests.frameworks.test_tensorflow_model import compare; compare(); print('equal')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-2000:]
