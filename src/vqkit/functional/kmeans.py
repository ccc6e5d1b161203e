"""k-means, to start a codebook where the data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.functional.search import nearest_codes, squared_distances_to

if TYPE_CHECKING:
    from jaxtyping import Float


def kmeans(
    points: Float[Tensor, "n dim"],
    weights: Float[Tensor, " n"],
    codes: int,
    iterations: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "codes dim"], Float[Tensor, " codes"]]:
    """Lloyd's algorithm from ``codes`` distinct points drawn at random; the centres, and the weight of their points.

    ``centre = sum w x / sum w`` over the points that chose it.

    A centre that no point chose moves onto the point farthest from its own centre, so none is wasted. Where there are
    fewer distinct points than codes, each point is a centre and the rest are points with noise of a hundredth of the
    data's spread: no two centres are equal, none is zero for want of data.

    Raises:
        ValueError: if there is no point.
    """
    if len(points) == 0:
        raise ValueError("points is empty; k-means needs at least one vector: pass a batch that is not all masked.")
    distinct = torch.unique(points, dim=0)
    order = torch.randperm(len(distinct), generator=generator, device="cpu").to(points.device)
    centres = distinct[order[:codes]]
    if len(centres) < codes:
        centres = _with_noisy_copies(centres, codes, points, generator)
        return centres, _sizes(nearest_codes(points, centres), weights, codes)
    for _ in range(iterations):
        indices = nearest_codes(points, centres)
        sizes = _sizes(indices, weights, codes)
        sums = torch.zeros_like(centres).index_add_(0, indices, weights[:, None] * (points - centres[indices]))
        centres = centres + sums / torch.where(sizes > 0, sizes, 1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            farthest = squared_distances_to(points, centres, indices).topk(len(empty)).indices
            centres[empty] = points[farthest]
    return centres, _sizes(nearest_codes(points, centres), weights, codes)


def _sizes(indices: Tensor, weights: Tensor, codes: int) -> Tensor:
    return weights.new_zeros(codes).index_add_(0, indices, weights)


def _with_noisy_copies(centres: Tensor, codes: int, points: Tensor, generator: torch.Generator) -> Tensor:
    copied = centres[torch.arange(codes - len(centres)) % len(centres)]
    noise = torch.randn(copied.shape, generator=generator, dtype=points.dtype, device="cpu").to(points.device)
    scale = 0.01 * points.std(0, correction=0).clamp(min=1e-3 * points.abs().max().clamp(min=1e-6))
    while len(torch.unique(torch.cat([centres, copied + scale * noise]), dim=0)) < codes:
        scale = 2 * scale  # so little noise was lost in rounding
    return torch.cat([centres, copied + scale * noise])
