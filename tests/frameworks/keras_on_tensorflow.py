"""Keras on TensorFlow: eager, and one graph by ``tf.function(jit_compile=True)``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import tensorflow as tf

import vqkit.keras

forms = ("eager", "jit")
Layer = vqkit.keras.VectorQuantizer


def width(dtype: str) -> nullcontext[None]:
    return nullcontext()


def mask(mask: np.ndarray | None) -> tf.Tensor | None:
    return None if mask is None else tf.constant(mask)


def _compiled(function: Callable, form: str) -> Callable:
    return tf.function(function, jit_compile=True) if form == "jit" else function


def quantized(layer: Layer, training: bool, form: str) -> Callable:
    return _compiled(lambda z, mask: layer.quantized(z, mask, training), form)


def gradients(layer: Layer, training: bool, form: str) -> Callable:
    def call(z: tf.Tensor, g: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor | None]:
        with tf.GradientTape() as tape:
            tape.watch(z)
            z_q, _, losses = layer.quantized(z, mask, training)
            objective = tf.cast(tf.reduce_sum(z_q * g), losses.total.dtype) + losses.total
        of_z, of_codes = tape.gradient(objective, (z, layer.codebook.value))
        return of_z, None if of_codes is None else tf.convert_to_tensor(of_codes)

    return _compiled(call, form)


def learn(layer: Layer, training: bool, form: str) -> Callable:
    return _compiled(lambda z, mask: layer(z, mask=mask, training=training), form)
