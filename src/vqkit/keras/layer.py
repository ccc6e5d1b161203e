"""The vector quantizer as a Keras 3 layer.

Suffixes: N vectors, K codes, D dimensions, S sampled vectors.
"""

from __future__ import annotations

import random
import re
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import ops

from vqkit.codebooks import DataStart, Frozen, Given, Gradient, NoRevival, Uniform
from vqkit.functional.estimators import StraightThrough
from vqkit.keras.backends import backend
from vqkit.keras.config import read, written
from vqkit.keras.estimators import with_gradient_of
from vqkit.keras.learning import draw, revive
from vqkit.keras.losses import LossesOfThread
from vqkit.keras.metrics import CodebookLoss, Perplexity, Tally, Usage

if TYPE_CHECKING:
    from vqkit.codebooks import Revival, Start, Update
    from vqkit.functional.estimators import Estimator

_USAGE_DECAY = 0.99


class Losses(NamedTuple):
    """The losses of one call, scalars in float32 or float64; ``total`` is what to add to the objective."""

    codebook: Any
    commitment: Any
    total: Any


class Quantized(NamedTuple):
    """``z_q`` (..., dim) in z's dtype, int32 ``indices`` (...), and the ``losses``."""

    z_q: Any
    indices: Any
    losses: Losses


@keras.saving.register_keras_serializable(package="vqkit")
class VectorQuantizer(keras.layers.Layer):
    """``z_q(x) = e_k``, ``k = argmin_j |z_e(x) - e_j|^2`` (van den Oord et al. 2017, eq. 1 and 2); channels last.

    The layer returns z_q and adds its losses to the model's: ``commitment/(N D) sum (z_e - sg[e])^2`` and, where the
    codebook learns by it, ``1/(N D) sum (sg[z_e] - e)^2`` (eq. 3), over the N unmasked vectors. The gradient of z_q
    reaches z by the estimator, and the codebook never.

    ``EMA`` and revival change the codebook in a call with ``training=True``, after z_q and the losses were made of the
    old one, because Keras has no step after the optimizer's. Under ``tf.distribute`` they use the statistics of all
    replicas. A layer with ``trainable=False`` does not learn.

    Args:
        codebook_size: number of codes, K.
        dim: length of a vector; None takes it from the first input.
        update: how the codebook learns: ``Gradient()``, ``EMA(decay)`` or ``Frozen()``.
        estimator: what gradient z gets from z_q: ``StraightThrough()`` or ``RotationTrick()``.
        commitment: beta, the weight of the commitment loss.
        start: where the codes begin: ``Uniform()``, ``Normal()`` or ``Given(array)``.
        revival: what happens to codes that are no longer chosen: ``NoRevival()`` or ``Reseed()``.
        seed: of the start; None draws one as Keras's initializers do.
        name, dtype, trainable: as of every Keras layer.

    Weights: ``codebook`` (K, D), trainable under ``Gradient``; ``n`` (K,), its average vectors per step under EMA;
    ``codebook_usage`` (K,), counts that decay by 0.99 a training call; ``idle`` (K,), vectors since a code was chosen;
    ``steps``. They are float32 under every policy but float64, and the search never runs in less.

    Metrics: ``perplexity`` and ``usage``, of all that was quantized since the epoch began, and ``codebook_loss`` where
    it is not part of the objective; a layer that was given a name puts it before theirs. Of several layers in one model
    name each: of figures with one name Keras keeps the last.

    Raises:
        ValueError: an argument out of range, or codes that do not fit.

    >>> vq = VectorQuantizer(codebook_size=16)
    >>> z_q = vq(keras.random.normal((2, 10, 4)))
    >>> tuple(z_q.shape), len(vq.losses)
    ((2, 10, 4), 2)
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int | None = None,
        *,
        update: Update = Gradient(),
        estimator: Estimator = StraightThrough(),
        commitment: float = 0.25,
        start: Start = Uniform(),
        revival: Revival = NoRevival(),
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        for argument, size in (("codebook_size", codebook_size), ("dim", 1 if dim is None else dim)):
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(f"{argument} is {size!r}; it must be an integer of at least 1, for example 64.")
        if not 0 <= commitment < float("inf"):
            raise ValueError(f"commitment is {commitment}; it must be finite and not negative, for example 0.25.")
        _check_slot("update", update, "step", "EMA(decay=0.99)")
        _check_slot("estimator", estimator, "pull_back", "StraightThrough()")
        _check_slot("revival", revival, "dead", "Reseed()")
        if isinstance(start, DataStart):
            raise ValueError(
                f"start is {start}, which is for PyTorch: run scikit-learn's KMeans on outputs of the encoder, and "
                "pass start=Given(kmeans.cluster_centers_) or call set_codebook(kmeans.cluster_centers_)."
            )
        _check_slot("start", start, "codebook", "Uniform(), or Given(array) for codes of your own")
        if isinstance(update, Frozen) and revival.vectors(codebook_size):
            raise ValueError(
                f"revival is {revival}, which moves codes, but update=Frozen() never does: use NoRevival()."
            )
        if keras.backend.backend() == "jax" and update.by_gradient and revival.vectors(codebook_size):
            raise ValueError(
                f"revival is {revival}, but on Keras's JAX backend the optimizer alone changes a codebook that learns "
                "by its gradient: use update=EMA() with it, or NoRevival()."
            )
        self.codebook_size, self.dim, self.commitment, self.seed = codebook_size, dim, commitment, seed
        self.update, self.estimator, self.start, self.revival = update, estimator, start, revival
        self.supports_masking = True
        self._losses = LossesOfThread()
        self._tally = Tally(codebook_size)
        prefix = "" if re.fullmatch(r"vector_quantizer(_\d+)?", self.name) else f"{self.name}_"
        self._figures = [Perplexity(self._tally, f"{prefix}perplexity"), Usage(self._tally, f"{prefix}usage")]
        if not update.by_gradient:
            self._figures.append(CodebookLoss(self._tally, f"{prefix}codebook_loss"))

    def build(self, input_shape: Any) -> None:
        self.dim = self._checked_dim(input_shape)
        # Python's generator is the one that keras.utils.set_random_seed sets, and Keras's initializers draw from.
        rng = np.random.default_rng(random.randrange(2**31) if self.seed is None else self.seed)
        codes, n = self.start.codebook(self.codebook_size, self.dim, rng)
        wide = "float64" if self.variable_dtype == "float64" else "float32"
        self.codebook = self._weight("codebook", codes, wide, trainable=self.update.by_gradient)
        self.n = self._weight("n", np.broadcast_to(n, self.codebook_size), wide)
        self.codebook_usage = self._weight("codebook_usage", np.zeros(self.codebook_size), wide)
        self.idle = self._weight("idle", np.zeros(self.codebook_size), "int")
        self.steps = self._weight("steps", np.zeros(()), "int")
        self.built = True

    # --- what users call ------------------------------------------------------------------------------------------

    def call(self, z: Any, mask: Any = None, training: bool | None = None) -> Any:
        """``z_q`` in z's dtype; ``mask`` (...) is True where a vector counts, elsewhere z_q is zero."""
        z_q, _, losses = self.quantized(z, mask, training)
        if self.update.by_gradient:
            self.add_loss(losses.codebook)
        self.add_loss(losses.commitment)
        return z_q

    def quantized(self, z: Any, mask: Any = None, training: bool | None = None) -> Quantized:
        """``Quantized(z_q, indices, losses)``, for loops of your own; ``losses.total`` is what to add to the objective.

        Raises:
            ValueError: z or mask of a wrong shape or dtype; in eager mode, NaN or infinity in an unmasked vector. (In a
                graph such a vector gets z_q NaN, and nothing learns from it.)
        """
        z, z_ND, mask_N = self._flat(z, mask)
        x_ND, indices_N, valid_N = self._search(z_ND, mask_N)
        codes_ND = ops.take(backend.read(self.codebook), indices_N, axis=0)
        codes_ND = ops.stop_gradient(ops.cast(codes_ND, x_ND.dtype))
        # A padded vector is zero; one that is not finite shows as NaN to a loss scaler.
        filler_N1 = ops.where(mask_N[:, None], float("nan"), 0.0)
        e_ND = ops.where(valid_N[:, None], codes_ND, ops.cast(filler_N1, x_ND.dtype))
        z_q_ND = with_gradient_of(self.estimator, z_ND, ops.cast(e_ND, z_ND.dtype))

        counts_K = backend.segment_sum(ops.cast(valid_N, x_ND.dtype), indices_N, self.codebook_size)
        size = ops.sum(counts_K) * self.dim
        share = 1 / ops.where(size > 0, size, 1)  # ops.maximum of float64 is float32 on PyTorch
        commitment = self.commitment * share * ops.sum(ops.square(ops.cast(z_ND, x_ND.dtype) - e_ND))
        residual_ND = ops.where(valid_N[:, None], x_ND - e_ND, 0)
        if self.update.by_gradient:
            rows_ND = backend.look_up(backend.read(self.codebook), indices_N)
            error_ND = x_ND - ops.cast(rows_ND, x_ND.dtype)
            codebook_loss = share * ops.sum(ops.square(ops.where(valid_N[:, None], error_ND, 0)))
            total = codebook_loss + commitment
        else:
            codebook_loss = share * ops.sum(ops.square(residual_ND))
            total = commitment

        self._tally.add(counts_K, ops.stop_gradient(codebook_loss))
        if training and self.trainable:
            self._learn(x_ND, indices_N, valid_N, counts_K, residual_ND)
        shape = ops.shape(z)
        indices = ops.reshape(ops.where(mask_N, indices_N, -1), shape[:-1])
        return Quantized(ops.reshape(z_q_ND, shape), indices, Losses(codebook_loss, commitment, total))

    def encode(self, z: Any, mask: Any = None) -> Any:
        """The int32 index of the nearest code for each vector; -1 where ``mask`` is False."""
        z, z_ND, mask_N = self._flat(z, mask)
        _, indices_N, _ = self._search(z_ND, mask_N)
        return ops.reshape(ops.where(mask_N, indices_N, -1), ops.shape(z)[:-1])

    def decode(self, indices: Any) -> Any:
        """The codes that ``indices`` name, (..., dim) in the compute dtype; zeros where an index is -1.

        Raises:
            ValueError: in eager mode, an index outside -1..K-1. (In a graph it gives NaN.)
        """
        if not self.built:
            if self.dim is None:
                raise ValueError(f"{self.name} has no codebook yet: pass dim=, or call it on an input first.")
            self.build((None, self.dim))
        indices = ops.convert_to_tensor(indices)
        dtype = keras.backend.standardize_dtype(indices.dtype)
        if not keras.backend.is_int_dtype(dtype):
            raise ValueError(f"indices has dtype {dtype}; it must be an integer one, as encode gives.")
        if dtype != "int64":  # uint8 knows neither -1 nor 512
            indices = ops.cast(indices, "int32")
        known = (indices >= -1) & (indices < self.codebook_size)
        if backend.is_concrete(indices) and not bool(ops.all(known)):
            raise ValueError(f"indices holds one outside -1..{self.codebook_size - 1}; -1 marks padding.")
        rows = ops.take(backend.read(self.codebook), ops.clip(indices, 0, self.codebook_size - 1), axis=0)
        filler = ops.cast(ops.where(known, 0.0, float("nan")), rows.dtype)
        return ops.cast(ops.where((known & (indices >= 0))[..., None], rows, filler[..., None]), self.compute_dtype)

    def set_codebook(self, codes: Any) -> None:
        """Replaces every code, as ``Given`` does at the start."""
        shape = np.shape(codes)
        array, n = Given(codes).codebook(self.codebook_size, self.dim or (shape or (1,))[-1], None)
        if not self.built:
            self.build(shape)
        self.codebook.assign(array)
        self.n.assign(n)
        self.idle.assign(np.zeros(self.codebook_size))

    # --- what Keras calls -----------------------------------------------------------------------------------------

    def compute_output_spec(self, z: Any, mask: Any = None, training: bool | None = None) -> Any:
        self._checked_dim(z.shape)
        return keras.KerasTensor(z.shape, dtype=self.compute_dtype)

    @property
    def variables(self) -> list[Any]:
        """The weights and the tally of the metrics, which is state but no weight."""
        return [*super().variables, self._tally.variable]

    def get_config(self) -> dict[str, Any]:
        slots = {slot: written(getattr(self, slot)) for slot in ("update", "estimator", "start", "revival")}
        plain = {name: getattr(self, name) for name in ("codebook_size", "dim", "commitment", "seed")}
        return {**super().get_config(), **plain, **slots}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VectorQuantizer:
        slots = {slot: read(slot, config[slot]) for slot in ("update", "estimator", "start", "revival")}
        return super().from_config({**config, **slots})

    # --- private --------------------------------------------------------------------------------------------------

    def _learn(self, x_ND: Any, indices_N: Any, valid_N: Any, counts_K: Any, residual_ND: Any) -> None:
        """One step of the codebook, in its dtype. It runs in every replica and gives the same in each."""
        x_ND, counts_K, residual_ND = (ops.cast(x, self.codebook.dtype) for x in (x_ND, counts_K, residual_ND))
        sums = [counts_K]
        if self.update.needs_sums:
            sums.append(backend.segment_sum(residual_ND, indices_N, self.codebook_size))
        size = self.revival.vectors(self.codebook_size)
        drawn_SD = draw(x_ND, valid_N, size, self.steps) if size else None
        sums, gathered = backend.over_replicas(sums, drawn_SD)
        counts_K, sums_KD = sums[0], sums[-1]
        tokens = ops.sum(counts_K)
        some = tokens > 0
        idle_K = backend.read(self.idle)
        idle_K = ops.where(counts_K > 0, 0, ops.minimum(idle_K, 2**30) + ops.cast(tokens, idle_K.dtype))
        codebook_KD, n_K = backend.read(self.codebook), backend.read(self.n)
        learnt_KD, learnt_n_K = self.update.step(codebook_KD, n_K, counts_K, sums_KD, ops)
        if size:
            if gathered.shape[0] != size:
                gathered = draw(gathered, ops.all(ops.isfinite(gathered), -1), size, self.steps)
            learnt_KD, learnt_n_K, idle_K = revive(self.revival, learnt_KD, learnt_n_K, idle_K, gathered)
        if self.update.needs_sums or size:
            self.codebook.assign(ops.where(some, learnt_KD, codebook_KD))
            self.n.assign(ops.where(some, learnt_n_K, n_K))
        usage_K = backend.read(self.codebook_usage)
        self.codebook_usage.assign(ops.where(some, _USAGE_DECAY * usage_K + counts_K, usage_K))
        self.idle.assign(idle_K)
        self.steps.assign_add(ops.cast(some, self.steps.dtype))

    def _search(self, z_ND: Any, mask_N: Any) -> tuple[Any, Any, Any]:
        """The vectors in float32 or float64 without gradient, their indices, and which are finite and not masked."""
        dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (z_ND, self.codebook)]
        wide = "float64" if "float64" in dtypes else "float32"
        x_ND = ops.stop_gradient(ops.cast(z_ND, wide))
        finite_N = ops.all(ops.isfinite(x_ND), -1)
        if backend.is_concrete(x_ND) and not bool(ops.all(finite_N)):
            row = int(np.argmin(ops.convert_to_numpy(finite_N)))
            raise ValueError(
                f"z holds NaN or infinity (the first is in vector {row} of the flattened batch); every vector must be "
                "finite. Lower the learning rate, clip gradients, or mask such positions with mask=."
            )
        return x_ND, backend.search(x_ND, ops.stop_gradient(backend.read(self.codebook))), finite_N & mask_N

    def _flat(self, z: Any, mask: Any) -> tuple[Any, Any, Any]:
        """z, its vectors (N, dim) with zeros where they are masked, and the mask (N,)."""
        z = ops.convert_to_tensor(z)
        if not keras.backend.is_float_dtype(z.dtype):
            raise ValueError(f"z has dtype {z.dtype}; it must be floating: convert it with ops.cast(z, 'float32').")
        if not self.built:
            self.build(z.shape)
        z_ND = ops.reshape(z, (-1, self._checked_dim(z.shape)))
        mask = ops.ones(ops.shape(z)[:-1], "bool") if mask is None else ops.convert_to_tensor(mask)
        # In a graph an axis of any length is None.
        fits = all(None in pair or pair[0] == pair[1] for pair in zip(mask.shape, z.shape[:-1], strict=False))
        if not fits or len(mask.shape) != len(z.shape) - 1 or keras.backend.standardize_dtype(mask.dtype) != "bool":
            raise ValueError(
                f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; for z of shape {tuple(z.shape)} it must "
                f"be {tuple(z.shape[:-1])} and bool, True where a vector counts."
            )
        mask_N = ops.reshape(mask, (-1,))
        return z, ops.where(mask_N[:, None], z_ND, 0), mask_N

    def _checked_dim(self, shape: Any) -> int:
        last = shape[-1] if len(shape) else None
        if last is None or last != (self.dim or last):
            if last is None:
                wanted, other = "of a known length", "name its length, as in keras.Input((None, 64))"
            else:
                wanted, other = f"dim={self.dim} long", f"set dim={last}"
            raise ValueError(
                f"z has shape {tuple(shape)}; its last axis must be {wanted}: move the channels there (for example "
                f"with keras.layers.Permute), or {other}."
            )
        return int(last)

    def _weight(self, name: str, values: np.ndarray, dtype: str, trainable: bool = False) -> Any:
        """Every replica assigns the same values, so that the first one's are everybody's."""
        return self.add_weight(
            shape=values.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype),
            dtype=dtype,
            trainable=trainable,
            autocast=False,
            aggregation="only_first_replica",
            name=name,
        )


def _check_slot(name: str, value: object, method: str, example: str) -> None:
    if isinstance(value, type) or not hasattr(value, method):
        shown = type(value).__name__ if hasattr(value, "__len__") and not isinstance(value, str) else repr(value)
        raise ValueError(f"{name} is {shown}; it must be an object such as {example}.")
