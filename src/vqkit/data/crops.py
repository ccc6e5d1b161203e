"""Random crops of images as float tensors, and images to and from tensors.

B crops, C channels, S the side of a crop. Images are uint8 (H, W, C), tensors float32 (B, C, S, S) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vqkit.data.files import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

# Makes of a uint8 (S, S, C) crop one of the same shape; draws from the given generator only.
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class RandomCrops:
    """Batches of random square crops, each a pure function of (seed, step).

    Every position in every image is equally likely: an image is drawn in proportion to
    (H - S + 1)(W - S + 1). A batch has its own generator, Philox keyed by (seed, step), so that a run
    resumed at a step sees the crops it would have seen.

    `images` are uint8 (H, W, C), C alike; `augment` is applied to each crop, in order; errors call the images by
    `names`, and propose a size that `multiple` divides.

    Raises: `DataError` where an image is smaller than a crop.

    >>> crops = RandomCrops([np.zeros((40, 50, 3), np.uint8)], size=32, batch=8, seed=0)
    >>> crops.batch_at(1000).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        size: int,
        batch: int,
        seed: int,
        augment: Sequence[Augment] = (),
        names: Sequence[str] = (),
        multiple: int = 1,
    ) -> None:
        _check(images, size, names, multiple)
        self.images, self.size, self.batch, self.seed, self.augment = images, size, batch, seed, augment
        self._columns = np.array([image.shape[1] - size + 1 for image in images])
        positions = self._columns * [image.shape[0] - size + 1 for image in images]
        self._ends = np.cumsum(positions)
        self._starts = self._ends - positions

    def batch_at(self, step: int) -> Float32[torch.Tensor, "B C S S"]:
        """The batch of this step, whatever was asked before."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, step))))
        positions = rng.integers(self._ends[-1], size=self.batch)
        chosen = np.searchsorted(self._ends, positions, side="right")
        tops, lefts = np.divmod(positions - self._starts[chosen], self._columns[chosen])
        crops = []
        for i, top, left in zip(chosen.tolist(), tops.tolist(), lefts.tolist(), strict=True):
            crop = self.images[i][top : top + self.size, left : left + self.size]
            for augment in self.augment:
                crop = augment(crop, rng)
            crops.append(crop)
        return _stack(crops)


def to_tensor(image: UInt8[np.ndarray, "H W C"]) -> Float32[torch.Tensor, "1 C H W"]:
    """One image for a model: v / 255."""
    return _stack([image])


def to_image(tensor: Float[torch.Tensor, "... C H W"]) -> UInt8[np.ndarray, "H W C"]:
    """The image in a tensor (C, H, W) or (1, C, H, W): round(255 v), v clipped to [0, 1]; undoes `to_tensor`.

    Raises: ValueError where it holds NaN.

    >>> to_image(torch.tensor([[[-0.1, 0.25, 2.0]]])).ravel().tolist()
    [0, 64, 255]
    """
    values = tensor.detach().float().cpu().reshape(tensor.shape[-3:]).permute(1, 2, 0)
    if values.isnan().any():
        raise ValueError("tensor holds NaN, expected numbers; the model that made it has diverged")
    pixels: np.ndarray = values.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous().numpy()
    return pixels


def _stack(crops: list[np.ndarray]) -> Float32[torch.Tensor, "B C S S"]:
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))).float().div_(255)


def _check(images: Sequence[np.ndarray], size: int, names: Sequence[str], multiple: int) -> None:
    sides = [min(image.shape[:2]) for image in images]
    smallest = int(np.argmin(sides))
    if sides[smallest] < size:
        height, width, _ = images[smallest].shape
        fits = sides[smallest] // multiple * multiple
        raise DataError(
            f"image {names[smallest] if names else smallest} is {width} x {height} pixels, but crops are {size} x {size} "
            f"({sum(side < size for side in sides)} of {len(images)} images are too small); "
            f"{f'use --set crop={fits}, or' if fits else 'use'} larger images only"
        )
