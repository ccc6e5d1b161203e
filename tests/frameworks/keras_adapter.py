"""Keras, on the backend of this process. Derivatives are the backend's own; training is ``train_on_batch``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np

import vqkit
import vqkit.keras
from tests.frameworks.adapter import Forward, Gradients, Trained
from tests.frameworks.trainer import BETA_1, BETA_2, EPS

BACKEND = keras.backend.backend()
engine = import_module(f"tests.frameworks.keras_on_{BACKEND}")

forms = engine.forms
dtypes = ("float32", "float64")
halves = ("float16", "bfloat16")
# In Keras's step on JAX the optimizer has the last word on a trainable weight: the layer refuses what cannot last.
revives = ("ema",) if BACKEND == "jax" else ("gradient", "ema")


class KerasQuantizer:
    def __init__(self, layer: vqkit.keras.VectorQuantizer, dtype: str) -> None:
        self.layer, self.dtype, self.compiled = layer, dtype, {}

    @property
    def native(self) -> vqkit.keras.VectorQuantizer:
        return self.layer

    def set_codebook(self, codes: np.ndarray) -> None:
        with engine.width(self.dtype):
            self.layer.set_codebook(codes)

    def forward(
        self,
        z: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        training: bool = False,
        form: str = "eager",
        cast: str | None = None,
    ) -> Forward:
        with engine.width(self.dtype):
            tensor = keras.ops.convert_to_tensor(z, cast)
            z_q, indices, losses = self._call("quantized", form, training)(tensor, engine.mask(mask))
            dtype = keras.backend.standardize_dtype(z_q.dtype)
            return Forward(array(z_q), array(indices), *(float(array(loss)) for loss in losses), dtype)

    def gradients(
        self,
        z: np.ndarray,
        g: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        form: str = "eager",
        cast: str | None = None,
    ) -> Gradients:
        with engine.width(self.dtype):
            tensors = (*(keras.ops.convert_to_tensor(x, cast) for x in (z, g)), engine.mask(mask))
            of_z, of_codes = self._call("gradients", form, True)(*tensors)
            return Gradients(array(of_z), 0 * array(self.layer.codebook) if of_codes is None else array(of_codes))

    def learn(
        self, z: np.ndarray, mask: np.ndarray | None = None, *, form: str = "eager", cast: str | None = None
    ) -> None:
        with engine.width(self.dtype):
            # A call of the layer casts z to the layer's dtype; ``quantized``, where a step is made too, does not.
            step = self._call("learn" if cast is None else "quantized", form, True)
            step(keras.ops.convert_to_tensor(z, cast), engine.mask(mask))

    def encode(self, z: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        with engine.width(self.dtype):
            return array(self.layer.encode(keras.ops.convert_to_tensor(z), engine.mask(mask)))

    def decode(self, indices: np.ndarray) -> np.ndarray:
        with engine.width(self.dtype):
            return array(self.layer.decode(keras.ops.convert_to_tensor(indices)))

    def state(self) -> dict[str, np.ndarray]:
        names = {"codebook": "codebook", "n": "n", "usage": "codebook_usage", "idle": "idle"}
        return {name: array(getattr(self.layer, weight)).copy() for name, weight in names.items()}

    def reloaded(self, directory: Path) -> KerasQuantizer:
        with engine.width(self.dtype):
            model = keras.Sequential([keras.Input((self.layer.dim,), dtype=self.dtype), self.layer])
            model.save(directory / "model.keras")
            return KerasQuantizer(keras.saving.load_model(directory / "model.keras").layers[-1], self.dtype)

    def _call(self, what: str, form: str, training: bool) -> Any:
        """Compiled once for each: a quantizer's weights are its own."""
        key = what, form, training
        if key not in self.compiled:
            self.compiled[key] = getattr(engine, what)(self.layer, training, form)
        return self.compiled[key]


def array(tensor: Any) -> np.ndarray:
    """In float32 of a half precision."""
    half = keras.backend.standardize_dtype(tensor.dtype) in halves
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32") if half else tensor)


class Linear(keras.layers.Layer):
    """``x @ w + b`` by the backend's own operators: Keras's (3.15) take float64 for float32 on JAX and PyTorch."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.weight, self.bias = (
            self.add_weight(shape=values.shape, initializer=lambda shape, dtype, values=values: array_of(values, dtype))
            for values in (weight, bias)
        )

    def call(self, x: Any) -> Any:
        return x @ self.weight.value + self.bias.value


def array_of(values: np.ndarray, dtype: str) -> Any:
    return keras.ops.convert_to_tensor(values, dtype)


def _squared_error(target: Any, y: Any) -> Any:
    """The mean over all entries; not "mse", for the same reason."""
    return keras.ops.sum(keras.ops.square(y - target)) / keras.ops.cast(keras.ops.size(y), y.dtype)


@contextmanager
def losses_in(dtype: str) -> Iterator[None]:
    """Keras adds losses up in its float type."""
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def make(
    codes: np.ndarray,
    *,
    update: Any = vqkit.Gradient(),
    estimator: Any = vqkit.StraightThrough(),
    commitment: float = 0.25,
    revival: Any = vqkit.NoRevival(),
    n: Any = 1.0,
    dtype: str = "float32",
) -> KerasQuantizer:
    slots = {"update": update, "estimator": estimator, "commitment": commitment, "revival": revival}
    given = vqkit.Given(codes.astype(dtype), n)
    with engine.width(dtype):
        layer = vqkit.keras.VectorQuantizer(len(codes), codes.shape[1], **slots, start=given, seed=0, dtype=dtype)
        layer.build((None, codes.shape[1]))
        return KerasQuantizer(layer, dtype)


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
    vq = make(codes, update=update, estimator=estimator, dtype=dtype).layer
    with engine.width(dtype), losses_in(dtype):
        encoder, decoder = (Linear(weights[name], weights[f"{name}_bias"], dtype) for name in ("encoder", "decoder"))
        model = keras.Sequential([keras.Input(batches[0][0].shape[1:], dtype=dtype), encoder, vq, decoder])
        kind = {"sgd": keras.optimizers.SGD(rate), "adam": keras.optimizers.Adam(rate, BETA_1, BETA_2, EPS)}[optimizer]
        model.compile(optimizer=kind, loss=_squared_error)
        for x, target in batches:
            model.train_on_batch(x.astype(dtype), target.astype(dtype))
        found = {}
        for name, layer in (("encoder", encoder), ("decoder", decoder)):
            found[name], found[f"{name}_bias"] = array(layer.weight), array(layer.bias)
        return Trained(array(vq.codebook), found)
