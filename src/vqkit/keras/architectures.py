"""The encoders and decoders of ``vqkit.models`` in Keras, channels last.

A layer has the name of PyTorch's module with ``_`` for ``.``, so that weights are handed over by name. A kernel (a, b,
h, w) of PyTorch is (h, w, b, a) here, that of a transposed convolution too.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, layers, ops

from vqkit.models.architectures import Convolutional, Patchwise


def build(architecture: Patchwise | Convolutional, channels: int, dim: int) -> tuple[keras.Model, keras.Model]:
    """Encoder (B, H, W, channels) in [0, 1] to (B, H/stride, W/stride, dim), and the decoder back."""
    parts: dict[type, tuple[Any, Any]] = {
        Patchwise: (_patch_encoder, _patch_decoder),
        Convolutional: (_conv_encoder, _conv_decoder),
    }
    if type(architecture) not in parts:
        raise ValueError(
            f"architecture is {architecture!r}; it must be Patchwise() or Convolutional() of vqkit.models. For layers "
            "of your own compose the model: VQVAE(encoder, quantizer, decoder)."
        )
    encode, decode = parts[type(architecture)]
    images, z_q = keras.Input((None, None, channels)), keras.Input((None, None, dim))
    z = encode(architecture, Centred(architecture.stride, name="centred")(images), dim)
    x_hat = decode(architecture, z_q, channels) + 0.5
    return keras.Model(images, z, name="encoder"), keras.Model(z_q, x_hat, name="decoder")


def _patch_encoder(sizes: Patchwise, x: Any, dim: int) -> Any:
    x = _conv(Unshuffle(sizes.stride, name="unshuffle")(x), sizes.hidden, 3, "embed", _as_in_torch)
    x = _trunk(x, sizes.encoder_blocks, sizes.hidden, _as_in_torch, use_bias=True)
    return _conv(x, dim, 1, "project", _as_in_torch)


def _patch_decoder(sizes: Patchwise, x: Any, channels: int) -> Any:
    x = _conv(x, sizes.hidden, 3, "embed", _as_in_torch)
    x = _trunk(x, sizes.decoder_blocks, sizes.hidden, _as_in_torch, use_bias=True)
    x = _conv(x, channels * sizes.stride**2, 3, "project", _as_in_torch)
    return Shuffle(sizes.stride, name="shuffle")(x)


def _conv_encoder(sizes: Convolutional, x: Any, dim: int) -> Any:
    halvings = sizes.stride.bit_length() - 1
    for i in range(halvings):
        wider = sizes.hidden // 2 if i == 0 else sizes.hidden
        x = ops.relu(_conv(x, wider, 4, f"shrink_{2 * i}", _as_published, strides=2))
    x = _conv(x, sizes.hidden, 3, f"shrink_{2 * halvings}", _as_published)
    x = _trunk(x, sizes.blocks, sizes.residual, _as_published, use_bias=False)
    return _conv(x, dim, 1, "project", _as_published)


def _conv_decoder(sizes: Convolutional, x: Any, channels: int) -> Any:
    x = _conv(x, sizes.hidden, 3, "project", _as_published)
    x = _trunk(x, sizes.blocks, sizes.residual, _as_published, use_bias=False)
    last = sizes.stride.bit_length() - 2
    for i in range(last + 1):
        narrower = channels if i == last else sizes.hidden // 2
        x = _conv(x, narrower, 4, f"grow_{2 * i}", _as_published, layers.Conv2DTranspose, strides=2)
        x = x if i == last else ops.relu(x)
    return x


def _trunk(x: Any, blocks: int, inner: int, start: Any, use_bias: bool) -> Any:
    """Residual blocks ``x + conv1x1(relu(conv3x3(relu(x))))``."""
    for i in range(blocks):
        y = _conv(ops.relu(x), inner, 3, f"trunk_{i}_spread", start, use_bias=use_bias)
        x = x + _conv(ops.relu(y), x.shape[-1], 1, f"trunk_{i}_merge", start, use_bias=use_bias)
    return ops.relu(x)


def _conv(
    x: Any,
    filters: int,
    side: int,
    name: str,
    start: Any,
    layer: Any = layers.Conv2D,
    *,
    strides: int = 1,
    use_bias: bool = True,
) -> Any:
    # "same" pads a 4x4 convolution of stride 2 by one pixel on each side where sides are even, as PyTorch's models do.
    kernel, bias = start((x.shape[-1] * side**2) ** -0.5)
    return layer(
        *(filters, side, strides, "same"),
        data_format="channels_last", use_bias=use_bias, kernel_initializer=kernel, bias_initializer=bias, name=name,
    )(x)  # fmt: skip


def _as_in_torch(spread: float) -> tuple[Any, Any]:
    """PyTorch's own start: kernels and biases ``~ U(-spread, spread)``, spread 1/sqrt(fan_in)."""
    return initializers.RandomUniform(-spread, spread), initializers.RandomUniform(-spread, spread)


def _as_published(spread: float) -> tuple[Any, Any]:
    """Kernels ``~ N(0, spread^2)``, cut at two deviations, as the first public implementation begins; no bias."""
    return initializers.TruncatedNormal(stddev=spread), initializers.Zeros()


class _OfStride(layers.Layer):
    def __init__(self, stride: int, *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.stride = stride

    def get_config(self) -> dict[str, Any]:
        return {"stride": self.stride, "name": self.name, "dtype": self.dtype_policy.name}


@keras.saving.register_keras_serializable("vqkit")
class Centred(_OfStride):
    """Pixels in [0, 1] around 0; ``stride`` must divide the height and the width, as each code stands for a square."""

    def call(self, images: Any) -> Any:
        height, width = images.shape[1:3]
        if (height or 0) % self.stride or (width or 0) % self.stride:
            raise ValueError(
                f"images are {height} x {width}; both sides must be multiples of the architecture's stride "
                f"{self.stride}: crop them, or pad them."
            )
        return images - 0.5

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return input_shape


@keras.saving.register_keras_serializable("vqkit")
class Unshuffle(_OfStride):
    """Each ``stride`` x ``stride`` patch becomes one vector, (B, h s, w s, c) to (B, h, w, c s s): channels slowest."""

    def call(self, x: Any) -> Any:
        batch, height, width, channels = ops.shape(x)
        s, h, w = self.stride, height // self.stride, width // self.stride
        patches = ops.transpose(ops.reshape(x, (batch, h, s, w, s, channels)), (0, 1, 3, 5, 2, 4))
        return ops.reshape(patches, (batch, h, w, channels * s * s))

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        batch, *sides, channels = input_shape
        return (batch, *(side and side // self.stride for side in sides), channels * self.stride**2)


@keras.saving.register_keras_serializable("vqkit")
class Shuffle(_OfStride):
    """The inverse of ``Unshuffle``."""

    def call(self, x: Any) -> Any:
        batch, h, w, wide = ops.shape(x)
        s, channels = self.stride, wide // self.stride**2
        patches = ops.transpose(ops.reshape(x, (batch, h, w, channels, s, s)), (0, 1, 4, 2, 5, 3))
        return ops.reshape(patches, (batch, h * s, w * s, channels))

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[Any, ...]:
        batch, *sides, channels = input_shape
        return (batch, *(side and side * self.stride for side in sides), channels // self.stride**2)
