"""Keras on JAX: eager, and pure functions of the layer's weights under ``jax.jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

import vqkit.keras

forms = ("eager", "jit")
Layer = vqkit.keras.VectorQuantizer


def width(dtype: str) -> Any:
    """In float64 where that is asked for, and else as JAX comes."""
    return jax.enable_x64(dtype == "float64")


def mask(mask: np.ndarray | None) -> jax.Array | None:
    return None if mask is None else jnp.asarray(mask)


def _pure(layer: Layer, function: Callable) -> Callable:
    """``function`` of the values of the layer's weights; with what they become."""

    def call(values: list[jax.Array], *arguments: Any) -> tuple[Any, list[jax.Array]]:
        with keras.StatelessScope(state_mapping=list(zip(layer.variables, values, strict=True))) as scope:
            found = function(*arguments)
        new = [scope.get_current_value(variable) for variable in layer.variables]
        return found, [old if value is None else value for old, value in zip(values, new, strict=True)]

    return call


def _run(layer: Layer, function: Callable, form: str) -> Callable:
    if form == "eager":
        return function
    pure = jax.jit(_pure(layer, function))

    def call(*arguments: Any) -> Any:
        found, values = pure([variable.value for variable in layer.variables], *arguments)
        for variable, value in zip(layer.variables, values, strict=True):
            variable.assign(value)
        return found

    return call


def quantized(layer: Layer, training: bool, form: str) -> Callable:
    return _run(layer, lambda z, mask: layer.quantized(z, mask, training), form)


def gradients(layer: Layer, training: bool, form: str) -> Callable:
    at = next(i for i, variable in enumerate(layer.variables) if variable is layer.codebook)

    def objective(
        z: jax.Array, codes: jax.Array, values: list[jax.Array], g: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        values = [*values[:at], codes, *values[at + 1 :]]
        (z_q, _, losses), _ = _pure(layer, lambda z, mask: layer.quantized(z, mask, training))(values, z, mask)
        return (z_q * g).sum() + losses.total

    derivative = jax.grad(objective, argnums=(0, 1))
    derivative = jax.jit(derivative) if form == "jit" else derivative

    def call(z: jax.Array, g: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return derivative(z, layer.codebook.value, [variable.value for variable in layer.variables], g, mask)

    return call


def learn(layer: Layer, training: bool, form: str) -> Callable:
    return _run(layer, lambda z, mask: layer(z, mask=mask, training=training), form)
