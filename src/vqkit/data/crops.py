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

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of an (S, S, C) crop, drawing from the generator


class RandomCrops:
    """Batches of random square crops, each a pure function of (seed, step).

    Every position in every image is equally likely: an image is drawn in proportion to (H - S + 1)(W - S + 1).
    `augment` is applied to each crop, in order.

    Raises: `DataError` where an image is smaller than a crop; it calls the image by its name, and proposes a size
    that `multiple` divides.

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
        sides = [min(image.shape[:2]) for image in images]
        if min(sides) < size:
            i = int(np.argmin(sides))
            fits = sides[i] // multiple * multiple
            raise DataError(
                f"image {names[i] if names else i} is {images[i].shape[1]} x {images[i].shape[0]} pixels, but crops "
                f"are {size} x {size} ({sum(side < size for side in sides)} of {len(images)} images are too small); "
                f"{f'use --set crop={fits}, or' if fits else 'use'} larger images only"
            )
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
        return to_tensor(*crops)


def to_tensor(*images: UInt8[np.ndarray, "H W C"]) -> Float32[torch.Tensor, "B C H W"]:
    """Images of one size for a model: v / 255."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))).float().div_(255)


def to_image(tensor: Float[torch.Tensor, "... C H W"]) -> UInt8[np.ndarray, "H W C"]:
    """The image in a tensor (C, H, W) or (1, C, H, W): round(255 v), v clipped to [0, 1]; undoes `to_tensor`.

    Raises: ValueError where it holds NaN.

    >>> to_image(torch.tensor([[[-0.1, 0.25, 2.0]]])).ravel().tolist()
    [0, 64, 255]
    """
    values = tensor.detach().float().cpu().reshape(tensor.shape[-3:]).permute(1, 2, 0)
    if values.isnan().any():
        raise ValueError("tensor holds NaN, expected numbers; the model that made it has diverged")
    return np.ascontiguousarray(values.clamp(0, 1).mul(255).round().to(torch.uint8).numpy())
