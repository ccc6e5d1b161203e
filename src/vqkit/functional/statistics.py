"""How a codebook is used: counts and perplexity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int


def count_codes(indices: Int[Tensor, "..."], codebook_size: int) -> Int[Tensor, " codes"]:
    """How often each code was chosen, int64; the padding index -1 is not counted.

    >>> count_codes(torch.tensor([0, 2, 2, -1]), 4)
    tensor([1, 0, 2, 0])
    """
    flat = indices.reshape(-1)
    if flat.numel() and (int(flat.min()) < -1 or int(flat.max()) >= codebook_size):
        raise ValueError(
            f"indices span {int(flat.min())} to {int(flat.max())}; with codebook_size={codebook_size} each must be -1 "
            f"(padding) or in 0..{codebook_size - 1}."
        )
    return torch.bincount(flat + 1, minlength=codebook_size + 1)[1:]


def perplexity(counts: Tensor) -> float:
    """``exp(-sum_k p_k log p_k)`` with ``p = counts / sum counts``: from 1 to K codes; 0 where nothing was counted.

    >>> round(perplexity(torch.tensor([5, 5, 0])), 6)
    2.0
    """
    p = counts.double() / counts.sum().clamp(min=1)
    return float(torch.exp(-torch.special.xlogy(p, p).sum())) if bool(counts.any()) else 0.0
