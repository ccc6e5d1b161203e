"""Random crops of images as float tensors, and images to and from tensors.

B crops, C channels, S the side of a crop. Images are uint8 (H, W, C), tensors float32 (B, C, S, S) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vqkit.data.files import DataError
from vqkit.data.pictures import Pictures

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of an (S, S, C) crop, drawing from the generator
_TRIES = 100  # draws for one crop; where nine in ten images are damaged, 1 in 38,000 crops finds none


class RandomCrops:
    """Batches of random square crops, each a pure function of (seed, step).

    Every position in every image is equally likely: an image is drawn in proportion to (H - S + 1)(W - S + 1). For
    one that cannot be decoded (see `Pictures`) another is drawn from the same generator, with one RuntimeWarning.
    `augment` is applied to each crop, in order.

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
    ) -> None:
        self.images = images if isinstance(images, Pictures) else Pictures.of(images)
        sizes = self.images.sizes
        if sizes.min() < size:
            i = int(sizes.min(axis=1).argmin())
            raise DataError(
                f"{self.images.names[i]} is {sizes[i, 1]} x {sizes[i, 0]} pixels, but crops are {size} x {size}; "
                "leave such images out with Images.for_crops"
            )
        self.size, self.batch, self.seed, self.augment = size, batch, seed, augment
        rows, self._columns = (sizes - size + 1).T
        self._ends = np.cumsum(rows * self._columns)
        self._starts = self._ends - rows * self._columns

    def batch_at(self, step: int) -> Float32[torch.Tensor, "B C S S"]:
        """The batch of this step, whatever was asked before."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, step))))
        crops = []
        for place in self._places(rng.integers(self._ends[-1], size=self.batch)):
            crop = self._crop(place, rng)
            for augment in self.augment:
                crop = augment(crop, rng)
            crops.append(crop)
        return to_tensor(*crops)

    __getitem__ = batch_at  # what a DataLoader calls

    def _places(self, positions: np.ndarray) -> list[tuple[int, int, int]]:
        """Image, top and left of each position in the numbering of all crops of all images."""
        chosen = np.searchsorted(self._ends, positions, side="right")
        tops, lefts = np.divmod(positions - self._starts[chosen], self._columns[chosen])
        return list(zip(chosen.tolist(), tops.tolist(), lefts.tolist(), strict=True))

    def _crop(self, place: tuple[int, int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        for _ in range(_TRIES):
            i, top, left = place
            if (image := self.images.get(i)) is not None:
                return image[top : top + self.size, left : left + self.size]
            [place] = self._places(rng.integers(self._ends[-1], size=1))
        raise DataError(f"{_TRIES} images drawn in a row cannot be decoded; check the data")


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
