"""The convolutional encoder and decoder of the paper, for images of any size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.models.architectures import Convolutional

if TYPE_CHECKING:
    from jaxtyping import Float


def _initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 1/fan_in), cut at two deviations, and no bias, as the first public implementation begins.

    PyTorch's own start has a third of that variance, with which the first thousand steps learn more slowly.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        std = (module.in_channels * math.prod(module.kernel_size)) ** -0.5
        nn.init.trunc_normal_(module.weight, 0, std, -2 * std, 2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(relu(x))))``."""

    def __init__(self, hidden: int, residual: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(hidden, residual, 3, padding=1, bias=False)
        self.merge = nn.Conv2d(residual, hidden, 1, bias=False)

    def forward(self, x: Float[Tensor, "b hidden h w"]) -> Float[Tensor, "b hidden h w"]:
        return x + self.merge(F.relu(self.spread(F.relu(x))))


def _trunk(hidden: int, residual: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(hidden, residual) for _ in range(blocks)), nn.ReLU())


class ConvEncoder(nn.Module):
    """Images in [0, 1], (B, channels, H, W), to vectors (B, dim, H/stride, W/stride)."""

    def __init__(self, channels: int, dim: int, sizes: Convolutional) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for halving in range(sizes.stride.bit_length() - 1):
            wider = sizes.hidden // 2 if halving == 0 else sizes.hidden
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.ReLU()]
            width = wider
        self.shrink = nn.Sequential(*layers, nn.Conv2d(width, sizes.hidden, 3, padding=1))
        self.trunk = _trunk(sizes.hidden, sizes.residual, sizes.blocks)
        self.project = nn.Conv2d(sizes.hidden, dim, 1)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "b channels H W"]) -> Float[Tensor, "b dim h w"]:
        return self.project(self.trunk(self.shrink(images - 0.5)))


class ConvDecoder(nn.Module):
    """Vectors (B, dim, h, w) to images (B, channels, h stride, w stride), around [0, 1] but not clipped to it."""

    def __init__(self, channels: int, dim: int, sizes: Convolutional) -> None:
        super().__init__()
        self.project = nn.Conv2d(dim, sizes.hidden, 3, padding=1)
        self.trunk = _trunk(sizes.hidden, sizes.residual, sizes.blocks)
        layers: list[nn.Module] = []
        width = sizes.hidden
        for remaining in reversed(range(sizes.stride.bit_length() - 1)):
            narrower = channels if remaining == 0 else sizes.hidden // 2
            layers += [nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1), nn.ReLU()]
            width = narrower
        self.grow = nn.Sequential(*layers[:-1])
        self.apply(_initialise)

    def forward(self, z_q: Float[Tensor, "b dim h w"]) -> Float[Tensor, "b channels H W"]:
        return self.grow(self.trunk(self.project(z_q))) + 0.5
