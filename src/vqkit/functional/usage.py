"""Usage and perplexity of a codebook over a whole data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.functional.statistics import count_codes, perplexity

if TYPE_CHECKING:
    from jaxtyping import Int


class Usage:
    """Counts which codes were chosen, batch after batch; usage and perplexity are of all that was counted.

    The perplexity of a batch depends on its size, and the mean of such figures is not the perplexity of the data: 100
    batches of one vector each have perplexity 1, whatever the vectors. So counts are summed and the figure comes last.

    >>> usage = Usage(codebook_size=4)
    >>> for indices in (torch.tensor([0, 0]), torch.tensor([1, 1])):
    ...     usage.add(indices)
    >>> usage.perplexity, usage.used
    (2.0, 0.5)
    """

    def __init__(self, codebook_size: int) -> None:
        if codebook_size < 1:
            raise ValueError(f"codebook_size is {codebook_size}; it must be at least 1.")
        self.counts: Int[Tensor, " codes"] = torch.zeros(codebook_size, dtype=torch.int64)

    def add(self, indices: Int[Tensor, "..."]) -> None:
        """Counts a batch of indices; the padding index -1 is passed over."""
        self.counts += count_codes(indices.detach(), len(self.counts)).cpu()

    @property
    def used(self) -> float:
        """The share of codes that were chosen at least once."""
        return float((self.counts > 0).double().mean())

    @property
    def perplexity(self) -> float:
        """``exp(-sum_k p_k log p_k)``, from 1 to K; 0 before anything was counted."""
        return perplexity(self.counts)
