"""The vector-quantized autoencoder as a Keras model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras.saving import deserialize_keras_object, serialize_keras_object

from vqkit.codebooks import EMA, Reseed, Revival, Start, Uniform, Update
from vqkit.functional.estimators import Estimator, StraightThrough
from vqkit.keras.architectures import build
from vqkit.keras.layer import VectorQuantizer
from vqkit.models.architectures import Convolutional, Patchwise
from vqkit.models.objects import SLOTS
from vqkit.models.storage import FORMAT

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_PARTS = ("encoder", "quantizer", "decoder")


@keras.saving.register_keras_serializable("vqkit")
class VQVAE(keras.Model):
    """``x_hat = decoder(z_q(encoder(x)))`` (van den Oord et al. 2017, figure 1), of any three layers.

    ``fit(images)`` and ``fit(images, images)`` minimise ``mean (x - x_hat)^2`` plus the quantizer's losses (eq. 3); a
    ``loss`` given to ``compile`` takes the place of the square. ``VQVAE.of`` makes the models of ``vqkit train``.
    ``run`` is what ``vqkit convert`` keeps of a run's ``config.json``; a model that is composed by hand has none.

    >>> import vqkit
    >>> model = VQVAE(keras.layers.Dense(4), VectorQuantizer(16), keras.layers.Dense(9))
    >>> model.compile("adam")
    >>> history = model.fit(keras.random.uniform((32, 9)), verbose=0)
    >>> model.encode(keras.random.uniform((5, 9))).shape
    TensorShape([5])
    """

    def __init__(
        self,
        encoder: keras.Layer,
        quantizer: keras.Layer,
        decoder: keras.Layer,
        *,
        run: dict[str, Any] | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        if not hasattr(quantizer, "encode"):
            raise ValueError(f"quantizer is a {type(quantizer).__name__}; it must be a vqkit.keras.VectorQuantizer.")
        self.encoder, self.quantizer, self.decoder, self.run = encoder, quantizer, decoder, run
        self.reconstruction = keras.metrics.MeanSquaredError("reconstruction")
        self.square = keras.losses.MeanSquaredError()

    @classmethod
    def of(
        cls,
        *,
        channels: int = 3,
        architecture: Patchwise | Convolutional = Patchwise(),
        dim: int = 16,
        codebook_size: int = 512,
        commitment: float = 0.25,
        update: Update = EMA(),
        estimator: Estimator = StraightThrough(),
        start: Start = Uniform(),
        revival: Revival = Reseed(),
        seed: int | None = None,
    ) -> VQVAE:
        """The model of ``vqkit.models.ModelConfig``, channels last: images (B, H, W, channels) in [0, 1].

        H and W must be multiples of the architecture's stride. Weights of encoder and decoder are drawn from Keras's
        generator (``keras.utils.set_random_seed``), ``seed`` is the quantizer's.

        >>> import vqkit
        >>> model = VQVAE.of(channels=1, architecture=vqkit.models.Patchwise(hidden=8), dim=4, codebook_size=32)
        >>> model.encode(keras.random.uniform((2, 28, 28, 1))).shape
        TensorShape([2, 7, 7])
        """
        quantizer = VectorQuantizer(
            codebook_size, dim, update=update, estimator=estimator, commitment=commitment, start=start,
            revival=revival, seed=seed,
        )  # fmt: skip
        # A start is past when a model is converted, and a configuration names no array.
        past = start if isinstance(start, SLOTS["start"]) else Uniform()
        slots = dict(zip(SLOTS, map(repr, (architecture, update, estimator, past, revival)), strict=True))
        sizes = {"channels": channels, "dim": dim, "codebook_size": codebook_size, "commitment": commitment}
        encoder, decoder = build(architecture, channels, dim)
        model = cls(encoder, quantizer, decoder, run={"format": FORMAT, "model": sizes | slots})
        model.build((None, None, None, channels))
        return model

    def call(self, x: Float[Any, "batch ..."], training: bool | None = None) -> Float[Any, "batch ..."]:
        # Handed on by name: Keras's JAX trainer runs this method outside of the context that would hand it on.
        z_q = self.quantizer(self.encoder(x, training=training), training=training)
        return self.decoder(z_q, training=training)

    def encode(self, x: Float[Any, "batch ..."]) -> Int[Any, "batch ..."]:
        """The indices of x."""
        return self.quantizer.encode(self.encoder(x, training=False))

    def decode(self, indices: Int[Any, "batch ..."]) -> Float[Any, "batch ..."]:
        """What the decoder makes of indices."""
        return self.decoder(self.quantizer.decode(indices), training=False)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """What ``fit`` minimises; the target is x where there is no y."""
        y = x if y is None else y
        dtype = keras.backend.standardize_dtype(y.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(f"images are {dtype}; they must be floats in [0, 1]: images.astype('float32') / 255.")
        if len(y.shape) != len(y_pred.shape):
            raise ValueError(
                f"images have shape {tuple(y.shape)} and reconstructions {tuple(y_pred.shape)}: give images their "
                "channel axis, images[..., None]."
            )
        self.reconstruction.update_state(y, y_pred)
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)  # of a replica its share, as the square
        if self.loss is not None:
            return loss
        if sample_weight is not None:
            raise ValueError("sample_weight weighs no reconstruction without a loss: compile(optimizer, loss='mse').")
        return loss + self.square(y, y_pred)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # Each part by a call of its own, so that layers that are built by their first call are built too.
        z = self.encoder(keras.KerasTensor(input_shape, self.compute_dtype))
        self.decoder(self.quantizer(z))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.decoder.compute_output_shape(self.encoder.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        parts = {part: serialize_keras_object(getattr(self, part)) for part in _PARTS}
        return {**super().get_config(), **parts, "run": self.run}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> VQVAE:
        parts = {part: deserialize_keras_object(config[part], custom_objects) for part in _PARTS}
        return cls(**{**config, **parts})
