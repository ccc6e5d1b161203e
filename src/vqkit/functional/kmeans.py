"""k-means, to start a codebook where the data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.functional.search import nearest_codes, squared_distances_to

if TYPE_CHECKING:
    from jaxtyping import Float


def kmeans(
    points: Float[Tensor, "n dim"], codes: int, iterations: int, generator: torch.Generator
) -> tuple[Float[Tensor, "codes dim"], Float[Tensor, " codes"]]:
    """Lloyd's algorithm from ``codes`` distinct points drawn at random; the centres, and how many points each has.

    A centre that no point chose moves onto the point farthest from its own centre, so none is wasted. Where there are
    fewer distinct points than codes, each point is a centre and the rest are points with noise of a hundredth of the
    data's spread: no two centres are equal, none is zero for want of data.

    Raises:
        ValueError: if there is no point.
    """
    if len(points) == 0:
        raise ValueError("points is empty; k-means needs at least one vector: pass a batch that is not all masked.")
    distinct = torch.unique(points, dim=0)
    order = torch.randperm(len(distinct), generator=generator).to(points.device)
    centres = distinct[order[:codes]]
    missing = codes - len(centres)
    if missing:
        noise = torch.randn(missing, points.shape[1], generator=generator, dtype=points.dtype).to(points.device)
        spread = points.std(0, correction=0).clamp(min=1e-3 * points.abs().max().clamp(min=1e-6))
        centres = torch.cat([centres, centres[torch.arange(missing) % len(centres)] + 0.01 * spread * noise])
        return centres, torch.bincount(nearest_codes(points, centres), minlength=codes).to(points.dtype)
    for _ in range(iterations):
        indices = nearest_codes(points, centres)
        counts = torch.bincount(indices, minlength=codes).to(points.dtype)
        sums = torch.zeros_like(centres).index_add_(0, indices, points - centres[indices])
        centres = centres + sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            farthest = squared_distances_to(points, centres, indices).topk(len(empty)).indices
            centres[empty] = points[farthest]
    return centres, torch.bincount(nearest_codes(points, centres), minlength=codes).to(points.dtype)
