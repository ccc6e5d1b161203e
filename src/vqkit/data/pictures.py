"""Many images as one sequence: in memory as far as they fit, the others decoded whenever they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from vqkit.data.files import DataError, Read, channels_of, opened, pixels_of, printable, shape_of

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8

Entry = tuple[str, Read | str]  # a file's name, and how to open it or why that cannot be
Skipped = tuple[str, str]  # a file's name, and why it gave no image


class Picture(NamedTuple):
    """One image: its name, its (H, W, C), and its pixels or how to open it."""

    name: str
    shape: tuple[int, ...]
    content: np.ndarray | Read


@dataclass(frozen=True, eq=False)
class Pictures(Sequence[np.ndarray]):
    """Images by index, each (H, W, C) uint8 with one C for all; gray ones among RGB ones are spread, read-only.

    It survives a fork, and can be pickled unless images of a compressed tar did not fit in memory.

    Raises: `DataError`, at the index, where an image that is not in memory cannot be decoded.
    """

    pictures: tuple[Picture, ...] = field(repr=False)
    channels: int

    @classmethod
    def of(cls, images: Sequence[np.ndarray], name: str = "image") -> Pictures:
        """Images in memory, of one C, called name[i]."""
        pictures = (Picture(f"{name}[{i}]", image.shape, image) for i, image in enumerate(images))
        return cls(tuple(pictures), images[0].shape[2])

    @cached_property
    def sizes(self) -> Int[np.ndarray, "n 2"]:
        """(H, W) of each, known without decoding."""
        return np.array([picture.shape[:2] for picture in self.pictures], np.int64).reshape(-1, 2)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(picture.name for picture in self.pictures)

    @cached_property
    def kept(self) -> bool:
        """Whether all pixels are in memory, or mapped into it."""
        return all(isinstance(picture.content, np.ndarray) for picture in self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    @overload
    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W C"]: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> UInt8[np.ndarray, "H W C"] | Pictures:
        if isinstance(index, slice):
            return Pictures(self.pictures[index], self.channels)
        name, shape, image = self.pictures[index]
        if not isinstance(image, np.ndarray):
            try:
                with opened(image) as encoded:
                    image = pixels_of(encoded)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
            if image.shape != shape:
                raise DataError(f"{name}: is {image.shape}, but was {shape} by its header when it was opened")
        return image if image.shape[2] == self.channels else np.broadcast_to(image, (*shape[:2], self.channels))

    def get(self, index: int) -> UInt8[np.ndarray, "H W C"] | None:
        """The image; None where it cannot be decoded, with a RuntimeWarning when that is first found."""
        try:
            return self[index]
        except DataError as error:
            if index not in self._warned:
                self._warned.add(index)
                warnings.warn(f"passed over {error}", RuntimeWarning, stacklevel=2)
            return None

    def readable(self, every: int = 1) -> Iterator[tuple[str, UInt8[np.ndarray, "H W C"]]]:
        """Name and pixels of every so many-th image, in order, but for those that cannot be decoded."""
        for i in range(0, len(self), every):
            if (image := self.get(i)) is not None:
                yield self.pictures[i].name, image

    @cached_property
    def _warned(self) -> set[int]:
        return set()

    def where(self, wanted: Iterable[bool]) -> Pictures:
        """Those images of which this is true."""
        pictures = (picture for picture, this in zip(self.pictures, wanted, strict=True) if this)
        return Pictures(tuple(pictures), self.channels)


def gather(
    entries: Iterable[Entry], memory: int, later: Callable[[Read], Read] | None = None
) -> tuple[list[Picture], list[Skipped]]:
    """Opens each entry, and decodes it where its pixels fit in what is left of ``memory`` bytes.

    Of the others the header is read; where ``read`` serves but once, ``later`` says how to open such a one again.
    """
    pictures, skipped = [], []
    for name, read in entries:
        name = printable(name)
        try:
            if isinstance(read, str):
                raise DataError(read)
            with opened(read) as image:
                if image.width * image.height * channels_of(image) <= memory:
                    pixels = pixels_of(image)
                    memory -= pixels.nbytes
                    pictures.append(Picture(name, pixels.shape, pixels))
                    continue
                shape = shape_of(image)
        except DataError as error:
            skipped.append((name, str(error)))
        else:
            pictures.append(Picture(name, shape, later(read) if later else read))
    return pictures, skipped
