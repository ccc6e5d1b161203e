"""The quantizer as people write it in JAX, and a training step of it and of ours: for ``benchmarks.frameworks``.

The EMA form is the one that JAX's public libraries have (Haiku's layer, after the one that was published with the
paper), as a pure function: all N x K distances expanded, a one-hot matrix that counts the codes and sums their vectors.
As there, codes are picked by a gather, so the one-hot matrix is used where it has to be and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import vqkit
import vqkit.jax
from benchmarks.frameworks import BETA, DECAY, EPSILON, IDENTITY, RATE, data

Codes = Any  # a pytree


def _onehot_indices(z: Array, e: Array) -> Array:
    squares = jnp.sum(z**2, 1, keepdims=True) + jnp.sum(e**2, 0, keepdims=True)
    return jnp.argmin(squares - 2 * (z @ e), 1)


def _onehot_ema(state: Codes, z: Array, target: Array) -> tuple[Array, Codes]:
    e, sizes, sums = state
    k = _onehot_indices(lax.stop_gradient(z), e)
    one_hot, q = jax.nn.one_hot(k, e.shape[1]), e.T[k]
    z_q = z + lax.stop_gradient(q - z)
    loss = jnp.mean((z_q - target) ** 2) + BETA * jnp.mean((lax.stop_gradient(q) - z) ** 2)
    sizes = DECAY * sizes + (1 - DECAY) * one_hot.sum(0)
    sums = DECAY * sums + (1 - DECAY) * (lax.stop_gradient(z).T @ one_hot)
    total = sizes.sum()
    return loss, (sums / ((sizes + EPSILON) / (total + e.shape[1] * EPSILON) * total), sizes, sums)


def _ours_ema(state: Codes, z: Array, target: Array) -> tuple[Array, Codes]:
    z_q, _, losses, statistics = vqkit.jax.quantize(state, z)
    loss = jnp.mean((z_q - target) ** 2) + losses.total
    return loss, vqkit.jax.update(state, statistics, rule=vqkit.EMA(DECAY))


def _onehot_gradient(e: Array, z: Array, target: Array) -> Array:
    one_hot = jax.nn.one_hot(_onehot_indices(z, e), e.shape[1])
    q = one_hot @ e.T
    z_q = z + lax.stop_gradient(q - z)
    losses = jnp.mean((q - lax.stop_gradient(z)) ** 2) + BETA * jnp.mean((lax.stop_gradient(q) - z) ** 2)
    return jnp.mean((z_q - target) ** 2) + losses


def _ours_gradient(codes: Array, z: Array, target: Array) -> Array:
    z_q, _, losses, _ = vqkit.jax.quantize(codes, z)
    return jnp.mean((z_q - target) ** 2) + losses.total


def _by_ema(forward: Callable) -> Callable:
    def run(state: Codes, z: Array, target: Array) -> tuple:
        (loss, state), at_z = jax.value_and_grad(forward, argnums=1, has_aux=True)(state, z, target)
        return state, loss, at_z

    return run


def _by_gradient(forward: Callable) -> Callable:
    def run(state: Codes, z: Array, target: Array) -> tuple:
        loss, (at_codes, at_z) = jax.value_and_grad(forward, argnums=(0, 1))(state, z, target)
        return state - RATE * at_codes, loss, at_z

    return run


def _ours_start(codes: np.ndarray) -> Codes:
    return vqkit.jax.init(jax.random.key(0), codebook_size=codes.shape[0], dim=codes.shape[1], start=vqkit.Given(codes))


STEPS: dict[str, tuple[Callable, Callable[[np.ndarray], Codes]]] = {
    "one-hot, EMA": (
        _by_ema(_onehot_ema),
        lambda codes: (jnp.array(codes.T), jnp.ones(len(codes)), jnp.array(codes.T)),
    ),
    "ours, EMA": (_by_ema(_ours_ema), _ours_start),
    "one-hot, gradient": (_by_gradient(_onehot_gradient), lambda codes: jnp.array(codes.T)),
    "ours, gradient": (_by_gradient(_ours_gradient), jnp.array),
    IDENTITY: (_by_ema(lambda state, z, target: (jnp.mean((z - target) ** 2), state)), jnp.array),
}


def step(name: str) -> Callable[[], None]:
    """One training step, compiled: forward, the gradient at z and, of a codebook that learns by it, a step of SGD."""
    z, target, codes = map(jnp.array, data())
    run, start = STEPS[name]
    compiled, state = jax.jit(run), start(np.asarray(codes))

    def once() -> None:
        nonlocal state
        state, loss, at_z = compiled(state, z, target)
        jax.block_until_ready((state, loss, at_z))

    return once


def indices(z: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """What each search chooses, compiled as in the step."""
    return {
        "one-hot": np.asarray(jax.jit(_onehot_indices)(z, codes.T)),
        "ours": np.asarray(jax.jit(vqkit.jax.nearest_codes)(z, codes)),
    }


def versions() -> str:
    return f"JAX {jax.__version__}"
