"""What every quantizer is: vectors in; codes, indices and losses out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class Losses(NamedTuple):
    """The losses of one call, each a scalar in float32 or wider.

    ``total`` is what to add to the objective: both terms where the codebook learns by its gradient, the commitment
    alone where it does not (the codebook term is then reported, and detached).
    """

    codebook: Tensor
    commitment: Tensor
    total: Tensor


class Quantized(NamedTuple):
    """What a quantizer returns: ``z_q`` (..., dim) in z's dtype, int64 ``indices`` (...), and the ``losses``."""

    z_q: Tensor
    indices: Tensor
    losses: Losses

    @property
    def loss(self) -> Tensor:
        """``losses.total``."""
        return self.losses.total


class Quantizer(nn.Module, ABC):
    """A layer on (..., dim) tensors."""

    dim: int
    codebook_size: int

    @abstractmethod
    def forward(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> Quantized:
        """Quantizes z. ``mask`` is True where a vector counts; elsewhere the index is -1 and the value zero."""

    @abstractmethod
    def encode(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> Int[Tensor, "..."]:
        """The indices alone, without gradient."""

    @abstractmethod
    def decode(self, indices: Int[Tensor, "..."], dtype: torch.dtype | None = None) -> Float[Tensor, "... dim"]:
        """The codes that ``indices`` name, in the codebook's dtype or in ``dtype``; zeros where an index is -1."""
