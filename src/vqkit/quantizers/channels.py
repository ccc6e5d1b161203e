"""A quantizer for feature maps with their channels first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.quantizers.base import Quantized, Quantizer

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class ChannelsFirst(Quantizer):
    """Serves (B, dim, ...) feature maps: the channel axis is moved last, quantized, and moved back.

    Indices have the shape (B, ...). (A reshape in place of the move would mix channels with positions.)

    >>> import vqkit
    >>> layer = ChannelsFirst(vqkit.VectorQuantizer(dim=8, codebook_size=16))
    >>> z_q, indices, losses = layer(torch.randn(2, 8, 4, 4))
    >>> z_q.shape, indices.shape
    (torch.Size([2, 8, 4, 4]), torch.Size([2, 4, 4]))
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.dim, self.codebook_size = quantizer.dim, quantizer.codebook_size

    def forward(
        self, z: Float[Tensor, "batch dim *rest"], mask: Bool[Tensor, "batch *rest"] | None = None
    ) -> Quantized:
        z_q, indices, losses = self.quantizer(self._last(z), mask)
        return Quantized(z_q.movedim(-1, 1), indices, losses)

    def encode(
        self, z: Float[Tensor, "batch dim *rest"], mask: Bool[Tensor, "batch *rest"] | None = None
    ) -> Int[Tensor, "batch *rest"]:
        return self.quantizer.encode(self._last(z), mask)

    def decode(
        self, indices: Int[Tensor, "batch *rest"], dtype: torch.dtype | None = None
    ) -> Float[Tensor, "batch dim *rest"]:
        return self.quantizer.decode(indices, dtype).movedim(-1, 1)

    def _last(self, z: Tensor) -> Tensor:
        if z.ndim < 2 or z.shape[1] != self.dim:
            raise ValueError(
                f"z has shape {tuple(z.shape)}; ChannelsFirst with dim={self.dim} takes (batch, {self.dim}, ...). For "
                "vectors along the last axis use the quantizer without ChannelsFirst."
            )
        return z.movedim(1, -1)
