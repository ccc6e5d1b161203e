"""An encoder and decoder that work on patches, at the resolution of the codes: the quickest here on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.models.architectures import Patchwise

if TYPE_CHECKING:
    from jaxtyping import Float


class PatchBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(relu(x))))``, as wide inside as outside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.merge = nn.Conv2d(hidden, hidden, 1)

    def forward(self, x: Float[Tensor, "b hidden h w"]) -> Float[Tensor, "b hidden h w"]:
        return x + self.merge(F.relu(self.spread(F.relu(x))))


class PatchEncoder(nn.Module):
    """Images in [0, 1], (B, channels, H, W), to vectors (B, dim, H/stride, W/stride)."""

    def __init__(self, channels: int, dim: int, sizes: Patchwise) -> None:
        super().__init__()
        self.stride = sizes.stride
        self.embed = nn.Conv2d(channels * sizes.stride**2, sizes.hidden, 3, padding=1)
        self.trunk = nn.Sequential(*(PatchBlock(sizes.hidden) for _ in range(sizes.encoder_blocks)), nn.ReLU())
        self.project = nn.Conv2d(sizes.hidden, dim, 1)

    def forward(self, images: Float[Tensor, "b channels H W"]) -> Float[Tensor, "b dim h w"]:
        return self.project(self.trunk(self.embed(F.pixel_unshuffle(images - 0.5, self.stride))))


class PatchDecoder(nn.Module):
    """Vectors (B, dim, h, w) to images (B, channels, h stride, w stride), around [0, 1] but not clipped to it."""

    def __init__(self, channels: int, dim: int, sizes: Patchwise) -> None:
        super().__init__()
        self.stride = sizes.stride
        self.embed = nn.Conv2d(dim, sizes.hidden, 3, padding=1)
        self.trunk = nn.Sequential(*(PatchBlock(sizes.hidden) for _ in range(sizes.decoder_blocks)), nn.ReLU())
        self.project = nn.Conv2d(sizes.hidden, channels * sizes.stride**2, 3, padding=1)

    def forward(self, z_q: Float[Tensor, "b dim h w"]) -> Float[Tensor, "b channels H W"]:
        return F.pixel_shuffle(self.project(self.trunk(self.embed(z_q))), self.stride) + 0.5
