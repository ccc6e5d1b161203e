"""The EMA quantizer as people write it in PyTorch: for ``benchmarks.quantizer``.

After the layer that was published with the paper: all N x K distances expanded, a one-hot matrix that picks the codes,
counts them and sums their vectors, and decayed sums with Laplace smoothing that move the codebook inside forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneHotEMA(nn.Module):
    """Takes (..., dim); gives z_q, the indices, and the weighted commitment loss."""

    codes: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, codes_KD: Tensor, decay: float, commitment: float, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.commitment, self.epsilon = decay, commitment, epsilon
        self.register_buffer("codes", codes_KD.clone())
        self.register_buffer("sizes", torch.ones(len(codes_KD)))
        self.register_buffer("sums", codes_KD.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat_ND, codes = z.detach().flatten(0, -2), len(self.codes)
        squares_NK = flat_ND.square().sum(1, keepdim=True) + self.codes.square().sum(1)
        indices_N = (squares_NK - 2 * flat_ND @ self.codes.T).argmin(1)
        one_hot_NK = F.one_hot(indices_N, codes).to(z.dtype)
        q = (one_hot_NK @ self.codes).view_as(z)
        if self.training:
            sizes_K = self.decay * self.sizes + (1 - self.decay) * one_hot_NK.sum(0)
            self.sums = self.decay * self.sums + (1 - self.decay) * (one_hot_NK.T @ flat_ND)
            total = sizes_K.sum()
            self.sizes = (sizes_K + self.epsilon) / (total + codes * self.epsilon) * total
            self.codes = self.sums / self.sizes[:, None]
        loss = self.commitment * F.mse_loss(z, q)
        return z + (q - z).detach(), indices_N.view(z.shape[:-1]), loss
