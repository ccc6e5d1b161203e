"""The quantizer as people write it in TensorFlow, and a training step of it and of ours: for ``benchmarks.frameworks``.

The forms are those of the Keras example "Vector-Quantized Variational Autoencoders" and, for EMA, of the layer that was
published with the paper: all N x K distances expanded, a one-hot matrix that picks the codes, counts them and sums
their vectors. Written as well as that can be: one product for each, nothing computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import vqkit
import vqkit.keras
from benchmarks.frameworks import BETA, DECAY, EPSILON, IDENTITY, RATE, data


class OneHot(keras.layers.Layer):
    """Learns by its losses."""

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__()
        self.codes = codes.shape[0]
        self.codebook = self._weight(codes.T, trainable=True)  # (D, K), as in the example

    def _weight(self, values: np.ndarray, trainable: bool = False) -> Any:
        initializer = keras.initializers.Constant(values)
        return self.add_weight(shape=values.shape, initializer=initializer, trainable=trainable)

    def indices(self, flat: tf.Tensor) -> tf.Tensor:
        e = tf.convert_to_tensor(self.codebook)
        squares = tf.reduce_sum(flat**2, 1, keepdims=True) + tf.reduce_sum(e**2, 0)
        return tf.argmin(squares - 2 * tf.matmul(flat, e), axis=1)

    def call(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        flat = tf.reshape(z, (-1, z.shape[-1]))
        one_hot = tf.one_hot(self.indices(flat), self.codes)
        q = tf.reshape(tf.matmul(one_hot, tf.convert_to_tensor(self.codebook), transpose_b=True), tf.shape(z))
        self.learn(z, q, flat, one_hot)
        return z + tf.stop_gradient(q - z)

    def learn(self, z: tf.Tensor, q: tf.Tensor, flat: tf.Tensor, one_hot: tf.Tensor) -> None:
        self.add_loss(tf.reduce_mean((q - tf.stop_gradient(z)) ** 2))
        self.add_loss(BETA * tf.reduce_mean((tf.stop_gradient(q) - z) ** 2))


class OneHotEMA(OneHot):
    """Learns by decayed sums, with Laplace smoothing."""

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__(codes)
        self.codebook.trainable = False
        self.sizes = self._weight(np.ones(len(codes), "float32"))
        self.sums = self._weight(codes.T)

    def learn(self, z: tf.Tensor, q: tf.Tensor, flat: tf.Tensor, one_hot: tf.Tensor) -> None:
        self.add_loss(BETA * tf.reduce_mean((tf.stop_gradient(q) - z) ** 2))
        sizes = DECAY * self.sizes + (1 - DECAY) * tf.reduce_sum(one_hot, 0)
        sums = DECAY * self.sums + (1 - DECAY) * tf.matmul(tf.stop_gradient(flat), one_hot, transpose_a=True)
        total = tf.reduce_sum(sizes)
        self.sizes.assign(sizes)
        self.sums.assign(sums)
        self.codebook.assign(sums / ((sizes + EPSILON) / (total + self.codes * EPSILON) * total))


def _ours(codes: np.ndarray, update: Any) -> keras.layers.Layer:
    return vqkit.keras.VectorQuantizer(*codes.shape, update=update, start=vqkit.Given(codes))


LAYERS: dict[str, Callable[[np.ndarray], keras.layers.Layer]] = {
    "one-hot, EMA": OneHotEMA,
    "ours, EMA": lambda codes: _ours(codes, vqkit.EMA(DECAY)),
    "one-hot, gradient": OneHot,
    "ours, gradient": lambda codes: _ours(codes, vqkit.Gradient()),
    IDENTITY: lambda codes: keras.layers.Identity(),
}


def step(name: str) -> Callable[[], None]:
    """One training step under XLA: forward, the gradient at z and, of a codebook that learns by it, a step of SGD."""
    z, target, codes = data()
    layer, z, target = LAYERS[name](codes), tf.constant(z), tf.constant(target)
    layer.build(z.shape)

    @tf.function(jit_compile=True)
    def run(z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = tf.reduce_mean((layer(z, training=True) - target) ** 2) + sum(layer.losses)
        at_z, *others = tape.gradient(loss, [z, *layer.trainable_variables])
        for variable, gradient in zip(layer.trainable_variables, others, strict=True):
            variable.assign(variable - RATE * tf.convert_to_tensor(gradient))
        return loss, at_z

    return lambda: [x.numpy() for x in run(z, target)] and None


def indices(z: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """What each search chooses, compiled as in the step."""
    onehot, ours = OneHot(codes), _ours(codes, vqkit.Gradient())
    ours.build(z.shape)
    return {
        "one-hot": tf.function(onehot.indices, jit_compile=True)(tf.constant(z)).numpy(),
        "ours": tf.function(ours.encode, jit_compile=True)(tf.constant(z)).numpy(),
    }


def versions() -> str:
    return f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
