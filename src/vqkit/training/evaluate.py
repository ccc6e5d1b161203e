"""What a trained model does to whole images, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from vqkit.data import to_image, to_tensor
from vqkit.functional.usage import Usage
from vqkit.models import VQVAE

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8

_SSIM_WINDOW = 11  # pixels: a Gaussian of sigma 1.5 cut at 3.5 sigma
_SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # as Wang et al. 2004


@dataclass(frozen=True)
class Figures:
    """Errors over all pixels of all images, of 8-bit reconstructions with values in [0, 1]; codes over all images.

    ``mse``; ``nmse = mse / variance of the pixels``; ``psnr = -10 log10(mse)`` in dB; ``ssim``, the mean over the
    images of at least 11 pixels a side (Wang et al. 2004, Gaussian window), else None; ``usage``, the share of codes
    chosen; ``perplexity`` of the counts; ``bits_per_pixel`` of the raw codes, ``ceil(log2 K)`` for each, over the
    pixels coded (an image is padded to a multiple of the stride).
    """

    images: int
    mse: float
    nmse: float
    psnr: float
    ssim: float | None
    usage: float
    perplexity: float
    bits_per_pixel: float

    def to_json(self) -> dict[str, Any]:
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(self).items()}


@torch.no_grad()
def reconstruct(
    model: VQVAE, image: UInt8[np.ndarray, "H W C"]
) -> tuple[UInt8[np.ndarray, "H W C"], Int[Tensor, "1 h w"]]:
    """The image as the model returns it, and its codes. Any size: edges are repeated to a multiple of the stride."""
    if model.config is None:
        raise ValueError("model has no config, so its stride is not known: build it with ModelConfig(...).build().")
    channels, stride = model.config.channels, model.config.architecture.stride
    if image.shape[2] != channels:
        kinds = {1: "gray", 3: "colour"}
        raise ValueError(
            f"the image has {image.shape[2]} channels, but this model was trained on {kinds.get(channels, channels)} "
            f"images of {channels}: convert the image, or train a model on such images."
        )
    height, width = image.shape[:2]
    x = F.pad(to_tensor(image), (0, -width % stride, 0, -height % stride), mode="replicate")
    indices = model.encode(x.to(next(model.parameters()).device))
    return to_image(model.decode(indices)[..., :height, :width]), indices


def evaluate(model: VQVAE, images: Iterable[UInt8[np.ndarray, "H W C"]]) -> tuple[Figures, Int[Tensor, " K"]]:
    """The figures over ``images``, and how often each code was chosen."""
    usage = Usage(model.quantizer.codebook_size)
    squared_error, ssims, count = 0.0, [], 0
    moments = np.zeros(3)  # number of values, their sum, their sum of squares
    was_training = model.training
    model.eval()
    try:
        for image in images:
            restored, indices = reconstruct(model, image)
            usage.add(indices)
            a, b = image.astype(np.float64) / 255, restored.astype(np.float64) / 255
            squared_error += float(((a - b) ** 2).sum())
            moments += (a.size, a.sum(), (a**2).sum())
            count += 1
            if min(image.shape[:2]) >= _SSIM_WINDOW:
                ssims.append(structural_similarity(a, b, channel_axis=-1, data_range=1.0, **_SSIM))
    finally:
        model.train(was_training)
    if not count:
        raise ValueError("images is empty; pass at least one image to evaluate.")
    mse, mean = squared_error / moments[0], moments[1] / moments[0]
    variance = moments[2] / moments[0] - mean**2
    bits = math.ceil(math.log2(len(usage.counts)))
    figures = Figures(
        images=count,
        mse=mse,
        nmse=mse / variance if variance > 1e-12 else math.nan,
        psnr=decibels(mse),
        ssim=float(np.mean(ssims)) if ssims else None,
        usage=usage.used,
        perplexity=usage.perplexity,
        bits_per_pixel=bits / model.config.architecture.stride**2 if model.config else math.nan,
    )
    return figures, usage.counts


def decibels(mse: float) -> float:
    """``-10 log10(mse)``, the PSNR of values in [0, 1]."""
    return -10 * math.log10(mse) if mse else math.inf


@torch.no_grad()
def atlas(model: VQVAE, side: int = 7, shown: int = 3) -> UInt8[np.ndarray, "K h w C"]:
    """What each code decodes to where all of its neighbours are the same: the middle ``shown`` x ``shown`` codes."""
    images = []
    for codes in torch.arange(model.quantizer.codebook_size).split(128):
        decoded = model.decode(codes[:, None, None].expand(-1, side, side).to(next(model.parameters()).device))
        edge = decoded.shape[-1] // side * ((side - shown) // 2)
        images += [to_image(one) for one in decoded[..., edge:-edge, edge:-edge]]
    return np.stack(images)
