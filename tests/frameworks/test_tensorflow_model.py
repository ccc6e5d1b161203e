"""The autoencoder on two replicas takes the steps that it takes on one."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import vqkit
from vqkit.keras.vqvae import VQVAE
from vqkit.models import Patchwise

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


def test_two_replicas_take_the_steps_of_one() -> None:
    one, figures = trained()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two, mirrored = trained()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name, values in figures.items():
        np.testing.assert_allclose(mirrored[name], values, rtol=1e-4, err_msg=name)
