"""The encoders and decoders of ``vqkit.models`` in Keras, channels last.

A layer has the name of PyTorch's module with ``_`` for ``.``, so that weights are handed over by name. A kernel (a, b,
h, w) of PyTorch is (h, w, b, a) here, that of a transposed convolution too.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
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
    patches = ops.space_to_depth(x, sizes.stride, data_format="channels_last")
    x = _conv(_transposed(patches, sizes.stride**2), sizes.hidden, 3, "embed", _as_in_torch)
    x = _trunk(x, sizes.encoder_blocks, sizes.hidden, _as_in_torch, use_bias=True)
    return _conv(x, dim, 1, "project", _as_in_torch)


def _patch_decoder(sizes: Patchwise, x: Any, channels: int) -> Any:
    x = _conv(x, sizes.hidden, 3, "embed", _as_in_torch)
    x = _trunk(x, sizes.decoder_blocks, sizes.hidden, _as_in_torch, use_bias=True)
    x = _conv(x, channels * sizes.stride**2, 3, "project", _as_in_torch)
    return ops.depth_to_space(_transposed(x, channels), sizes.stride, data_format="channels_last")


def _transposed(x: Any, slow: int) -> Any:
    """The last axis (slow, fast) as (fast, slow): of a patch PyTorch's channels are slowest, and Keras's fastest."""
    order = np.arange(x.shape[-1]).reshape(slow, -1).T
    return ops.take(x, order.ravel().tolist(), axis=-1)


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


@keras.saving.register_keras_serializable("vqkit")
class Centred(layers.Layer):
    """Pixels in [0, 1] around 0; ``stride`` must divide the height and the width, as each code stands for a square."""

    def __init__(self, stride: int, *, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.stride = stride

    def get_config(self) -> dict[str, Any]:
        return {"stride": self.stride, "name": self.name, "dtype": self.dtype_policy.name}

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
