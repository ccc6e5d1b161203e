"""What is said of a vector or a code that is not finite."""

from __future__ import annotations

import torch
from torch import Tensor


class NotFinite(ValueError):
    """A vector or a code holds NaN or infinity."""


def refuse(z_ND: Tensor, codebook_KD: Tensor) -> None:
    """Raises NotFinite, naming the first vector or else the first code that holds NaN or infinity."""
    if len(faulty := (~torch.isfinite(z_ND).all(1)).nonzero()):
        raise NotFinite(
            f"z holds NaN or infinity in {len(faulty)} of {len(z_ND)} vectors (the first is vector {int(faulty[0])} of "
            "the flattened batch); every vector must be finite. Lower the learning rate, clip gradients, or mask such "
            "positions with mask=."
        )
    if len(faulty := (~torch.isfinite(codebook_KD).all(1)).nonzero()):
        raise NotFinite(
            f"codebook holds NaN or infinity in row {int(faulty[0])}; every code must be finite: reload or restart it."
        )
