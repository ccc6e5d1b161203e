"""The VQ-VAE as people write it in PyTorch after the tutorials of the public reference: what ``benchmarks.step`` races.

The convolutions are those of ``Convolutional(hidden=128, residual=32, blocks=2)``. What differs is how it is written:
channels first in memory, all N x K distances expanded, a one-hot matrix that picks the codes, counts them and
sums their vectors, and a codebook that moves inside forward, by decayed sums with Laplace smoothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, RESIDUAL, DIM, CODES = 128, 32, 64, 512
DECAY, EPSILON, BETA = 0.99, 1e-5, 0.25


class PlainResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(HIDDEN, RESIDUAL, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(RESIDUAL, HIDDEN, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class PlainQuantizer(nn.Module):
    codebook: Tensor
    cluster_size: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(CODES, DIM))
        self.register_buffer("cluster_size", torch.zeros(CODES))
        self.register_buffer("sums", torch.randn(CODES, DIM))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, DIM)
        squares = torch.sum(flat**2, dim=1, keepdim=True) + torch.sum(self.codebook**2, dim=1)
        distances = squares - 2 * torch.matmul(flat, self.codebook.T)
        indices = distances.argmin(1, keepdim=True)
        one_hot = torch.zeros(len(indices), CODES).scatter_(1, indices, 1)
        q = torch.matmul(one_hot, self.codebook).view(z.shape)
        if self.training:
            with torch.no_grad():
                sizes = DECAY * self.cluster_size + (1 - DECAY) * one_hot.sum(0)
                total = sizes.sum()
                self.cluster_size = (sizes + EPSILON) / (total + CODES * EPSILON) * total
                self.sums = DECAY * self.sums + (1 - DECAY) * torch.matmul(one_hot.T, flat)
                self.codebook = self.sums / self.cluster_size[:, None]
        commitment = BETA * F.mse_loss(z, q.detach())
        z_q = z + (q - z).detach()
        p = one_hot.mean(0)
        perplexity = torch.exp(-(p * torch.log(p + 1e-10)).sum())
        return z_q.permute(0, 3, 1, 2).contiguous(), commitment, perplexity


class PlainVQVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, HIDDEN // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN // 2, HIDDEN, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1),
            PlainResidual(),
            PlainResidual(),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, DIM, 1),
        )
        self.quantizer = PlainQuantizer()
        self.decoder = nn.Sequential(
            nn.Conv2d(DIM, HIDDEN, 3, padding=1),
            PlainResidual(),
            PlainResidual(),
            nn.ReLU(),
            nn.ConvTranspose2d(HIDDEN, HIDDEN // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(HIDDEN // 2, 3, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, commitment, perplexity = self.quantizer(self.encoder(x))
        return self.decoder(z_q), commitment, perplexity
