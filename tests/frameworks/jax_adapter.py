"""JAX: pure functions, so a quantizer here is a codebook that is replaced. Optimizers are those of optax."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import vqkit
import vqkit.jax
from tests.frameworks.adapter import Forward, Gradients, Trained
from tests.frameworks.trainer import BETA_1, BETA_2, EPS

# Compiling takes nearly all of the time. With float64 only the training steps and the search are compiled.
forms = ("eager",) if jax.config.jax_enable_x64 else ("eager", "jit")
dtypes = ("float32", "float64") if jax.config.jax_enable_x64 else ("float32",)
halves = ("float16", "bfloat16")
revives = ("gradient", "ema")


class JaxQuantizer:
    def __init__(self, codebook: vqkit.jax.Codebook, slots: dict[str, Any]) -> None:
        self.codebook, self.slots = codebook, slots

    def set_codebook(self, codes: np.ndarray) -> None:
        self.codebook = make(codes, dtype=codes.dtype.name).codebook

    def forward(
        self,
        z: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        training: bool = False,
        form: str = "eager",
        cast: str | None = None,
    ) -> Forward:
        z_q, indices, losses, _ = self._call(_quantize, form)(self._codes(), jnp.asarray(z, cast), mask)
        return Forward(_wide(z_q), np.asarray(indices), *map(float, losses), str(z_q.dtype))

    def gradients(
        self,
        z: np.ndarray,
        g: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        form: str = "eager",
        cast: str | None = None,
    ) -> Gradients:
        points = (self.codebook.codes, jnp.asarray(z, cast))
        codes, of_z = self._call(_gradients, form)(*points, self.codebook, jnp.asarray(g, cast), mask)
        return Gradients(_wide(of_z), np.asarray(codes))

    def learn(
        self, z: np.ndarray, mask: np.ndarray | None = None, *, form: str = "eager", cast: str | None = None
    ) -> None:
        self.codebook = self._call(_learn, form)(self.codebook, jnp.asarray(z, cast), mask)

    def encode(self, z: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        indices = np.asarray(vqkit.jax.nearest_codes(jnp.asarray(z), self.codebook.codes))
        return indices if mask is None else np.where(mask, indices, -1)

    def decode(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(vqkit.jax.look_up(self.codebook, jnp.asarray(indices)))

    def state(self) -> dict[str, np.ndarray]:
        found = {"codebook": self.codebook.codes, "n": self.codebook.n}
        found |= {"usage": self.codebook.usage, "idle": self.codebook.idle}
        return {name: np.asarray(array) for name, array in found.items()}

    def reloaded(self, directory: Path) -> JaxQuantizer:
        leaves, tree = jax.tree.flatten(self.codebook)
        np.savez(directory / "codebook.npz", *leaves)
        with np.load(directory / "codebook.npz") as file:
            loaded = [jnp.asarray(file[name]) for name in file.files]
        return JaxQuantizer(jax.tree.unflatten(tree, loaded), self.slots)

    @property
    def native(self) -> vqkit.jax.Codebook:
        return self.codebook

    def _codes(self) -> Any:
        """A codebook that learns by its gradient is a parameter: its rows. Any other is not."""
        return self.codebook.codes if isinstance(self.slots["update"], vqkit.Gradient) else self.codebook

    def _call(self, function: Callable, form: str) -> Callable:
        return (_jitted if form == "jit" else lambda f, **slots: f(**slots))(function, **self.slots)


def _wide(array: Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.promote_types(array.dtype, jnp.float32)))


@cache
def _jitted(function: Callable, **slots: Any) -> Callable:
    """One for each set of slots, so that quantizers of one kind are compiled once."""
    return jax.jit(function(**slots))


def _quantize(update: Any, estimator: Any, commitment: float, revival: Any) -> Callable:
    def call(codebook: Any, z: Array, mask: Array | None) -> vqkit.jax.Quantized:
        return vqkit.jax.quantize(codebook, z, mask=mask, estimator=estimator, commitment=commitment)

    return call


def _gradients(update: Any, estimator: Any, commitment: float, revival: Any) -> Callable:
    def objective(codes: Array, z: Array, codebook: vqkit.jax.Codebook, g: Array, mask: Array | None) -> Array:
        rows = codes if isinstance(update, vqkit.Gradient) else codebook._replace(codes=codes)
        found = vqkit.jax.quantize(rows, z, mask=mask, estimator=estimator, commitment=commitment)
        return (found.z_q * g).sum() + found.losses.total

    return jax.grad(objective, argnums=(0, 1))


def _learn(update: Any, estimator: Any, commitment: float, revival: Any) -> Callable:
    def call(codebook: vqkit.jax.Codebook, z: Array, mask: Array | None) -> vqkit.jax.Codebook:
        sample = revival.vectors(len(codebook.codes)) if hasattr(revival, "vectors") else 0
        found = vqkit.jax.quantize(codebook, z, mask=mask, estimator=estimator, commitment=commitment, sample=sample)
        return vqkit.jax.update(codebook, found.statistics, rule=update, revival=revival)

    return call


def make(
    codes: np.ndarray,
    *,
    update: Any = vqkit.Gradient(),
    estimator: Any = vqkit.StraightThrough(),
    commitment: float = 0.25,
    revival: Any = vqkit.NoRevival(),
    n: Any = 1.0,
    dtype: str = "float32",
) -> JaxQuantizer:
    given = vqkit.Given(codes.astype(dtype), n)
    codebook = vqkit.jax.init(jax.random.key(0), codebook_size=len(codes), dim=codes.shape[1], start=given)
    slots = {"update": update, "estimator": estimator, "commitment": commitment, "revival": revival}
    return JaxQuantizer(codebook, slots)


def train(
    codes: np.ndarray,
    weights: dict[str, np.ndarray],
    batches: list[tuple[np.ndarray, np.ndarray]],
    *,
    update: Any,
    estimator: Any,
    optimizer: str,
    rate: float,
    dtype: str,
) -> Trained:
    """Of ``update=Gradient()`` the rows are a parameter among the others. Several steps are one jitted function."""
    codebook = make(codes, dtype=dtype).codebook
    params = {name: jnp.asarray(weight.astype(dtype)) for name, weight in weights.items()}
    by_gradient = isinstance(update, vqkit.Gradient)
    if by_gradient:
        params["codes"] = codebook.codes
    optimize = {"sgd": optax.sgd(rate), "adam": optax.adam(rate, BETA_1, BETA_2, EPS)}[optimizer]

    def objective(params: dict[str, Array], codebook: Any, x: Array, target: Array) -> tuple[Array, Any]:
        z = x @ params["encoder"] + params["encoder_bias"]
        rows = params["codes"] if by_gradient else codebook
        z_q, _, losses, statistics = vqkit.jax.quantize(rows, z, estimator=estimator)
        y = z_q @ params["decoder"] + params["decoder_bias"]
        return jnp.mean((y - target) ** 2) + losses.total, statistics

    def step(params: dict[str, Array], codebook: Any, memory: Any, x: Array, target: Array) -> tuple[Any, Any, Any]:
        gradients, statistics = jax.grad(objective, has_aux=True)(params, codebook, x, target)
        moves, memory = optimize.update(gradients, memory, params)
        params = optax.apply_updates(params, moves)
        if by_gradient:
            codebook = codebook._replace(codes=params["codes"])
        return params, vqkit.jax.update(codebook, statistics, rule=update), memory

    step = jax.jit(step) if len(batches) > 1 else step
    memory = optimize.init(params)
    for x, target in batches:
        params, codebook, memory = step(params, codebook, memory, x.astype(dtype), target.astype(dtype))
    found = {name: np.asarray(params[name]) for name in weights}
    return Trained(np.asarray(codebook.codes), found)
