"""Keras on PyTorch, where Keras has one form: eager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

import vqkit.keras

forms = ("eager",)
Layer = vqkit.keras.VectorQuantizer


def width(dtype: str) -> nullcontext[None]:
    return nullcontext()


def mask(mask: np.ndarray | None) -> Tensor | None:
    return None if mask is None else torch.tensor(mask)


def quantized(layer: Layer, training: bool, form: str) -> Callable:
    return lambda z, mask: layer.quantized(z, mask, training)


def gradients(layer: Layer, training: bool, form: str) -> Callable:
    def call(z: Tensor, g: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z.requires_grad_()
        z_q, _, losses = layer.quantized(z, mask, training)
        codes = (layer.codebook.value,) if layer.codebook.value.requires_grad else ()
        of_z, *of_codes = torch.autograd.grad((z_q * g).sum() + losses.total, (z, *codes))
        return of_z, of_codes[0] if of_codes else None

    return call


def learn(layer: Layer, training: bool, form: str) -> Callable:
    return lambda z, mask: layer(z, mask=mask, training=training)
