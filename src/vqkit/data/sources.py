"""`open_images`: whatever a person calls their images, as one immutable value."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vqkit.data.archives import ARCHIVE_NAME, read_archive
from vqkit.data.arrays import read_idx, read_npy
from vqkit.data.files import DataError, NoSuchPath, printable
from vqkit.data.hub import dataset_entries, is_dataset
from vqkit.data.pictures import Entry, Picture, Pictures, Skipped, gather

_IDX_NAME = re.compile(r"(-ubyte|\.idx\d?)(\.gz)?$", re.IGNORECASE)
_KINDS = "DATA is a folder of images, an image, a .zip or .tar, a .npy, .npz or idx file, or a saved dataset"
_MOST_FOR_VARIANCE = 1000  # images, where each must be decoded

# Real photos that scikit-image and scikit-learn install with themselves: the package to import, and the path inside.
BUNDLED = {
    "astronaut": "skimage/data/astronaut.png",
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
    "hubble_deep_field": "skimage/data/hubble_deep_field.jpg",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
}
BUNDLED_HELD_OUT = {"chelsea": "skimage/data/chelsea.png"}


@dataclass(frozen=True, eq=False)
class Images:
    """Images to train on and to evaluate on, each (H, W, C) uint8, C one number for all: 1 where all are gray, else 3.

    `held_out` is empty where there were too few to spare one. `skipped` gives name and reason for each file that
    gave no image.
    """

    images: Pictures = field(repr=False)
    held_out: Pictures = field(repr=False)
    skipped: tuple[Skipped, ...] = field(repr=False)
    description: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.images.names

    @property
    def held_out_names(self) -> tuple[str, ...]:
        return self.held_out.names

    @property
    def channels(self) -> int:
        return self.images.channels

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the training images' names, sizes and channels, in hexadecimal; no pixel is looked at."""
        told = [self.images.channels, *((picture.name, *picture.shape) for picture in self.images.pictures)]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def variance(self) -> float:
        """Of all pixels of the training images, with values in [0, 1], from exact sums; 1 where all are equal.

        Where not all are kept in memory, of at most 1,000 images spread evenly.
        """
        count = total = squares = 0
        every = 1 if self.images.kept else -(-len(self.images) // _MOST_FOR_VARIANCE)
        for _, image in self.images.readable(every):
            count += image.size
            total += int(image.sum(dtype=np.int64))
            squares += int(np.einsum("hwc,hwc->", image, image, dtype=np.int64, casting="unsafe"))
        return (count * squares - total**2) / (count * 255) ** 2 or 1.0

    def for_crops(self, size: int, multiple: int = 1) -> Images:
        """Without the training images that are smaller than size x size crops; these are `skipped`.

        Raises: `DataError` where none is large enough; it proposes a size that `multiple` divides.
        """
        sides = self.images.sizes.min(axis=1)
        if (sides >= size).all():
            return self
        if (sides < size).all():
            height, width = self.images.sizes[sides.argmax()]
            fits = sides.max() // multiple * multiple
            raise DataError(
                f"all {len(sides)} images are smaller than the {size} x {size} crops, the largest {width} x {height} "
                f"pixels; {f'use --set crop={fits}, or' if fits else 'use'} larger images"
            )
        small = [
            (picture.name, f"{picture.shape[1]} x {picture.shape[0]} pixels, smaller than the {size} x {size} crops")
            for picture in self.images.where(sides < size).pictures
        ]
        description = f"{self.description}; {len(small)} smaller than {size} x {size} left out"
        skipped = (*self.skipped, *small)
        return replace(self, images=self.images.where(sides >= size), skipped=skipped, description=description)


def open_images(path: str | os.PathLike[str] | None = None, memory: int = 2 * 2**30) -> Images:
    """The images at a path; without one the bundled photos, with `chelsea` held out.

    A path is a folder (searched recursively, in the order of names, hidden names ignored, each linked folder read
    once); a .zip, .tar or compressed .tar, as such a folder, with links ignored; one image of any kind that Pillow
    opens; a .npy, a .npz, or an idx file or idx.gz; or a Hugging Face dataset on disk.

    **Memory.** Images are decoded now and kept as long as their pixels take at most ``memory`` bytes; of the rest
    only headers are read now, and each is decoded whenever it is indexed. What of a compressed .tar is not kept goes
    to a temporary file (under TMPDIR). Arrays are kept whatever their size, a uint8 .npy mapped.

    **Held out** of n images, in order, is every k-th, k = max(10, ceil(n / 100)): a tenth, at most 100,
    spread over all folders, the same in every run. Of fewer than 10, none: each is worth more in training.
    Of a dataset that has one, its split `test`, else `validation`.

    Raises: `NoSuchPath`; `DataError` for any other fault of the data; ImportError where an extra is missing.
    """
    if path is None:
        photos, spared = _bundled(BUNDLED), _bundled(BUNDLED_HELD_OUT)
        description = f"bundled photos {', '.join(BUNDLED)}; {', '.join(BUNDLED_HELD_OUT)} held out"
        return replace(_images(*gather([*photos, *spared], memory), "", spared), description=description)
    # Not Path.exists: to Path the empty path, which an unset shell variable gives, is the current folder.
    if not os.path.exists(path):
        raise NoSuchPath(f"{os.fspath(path)!r}: no such file or folder; check the spelling; {_KINDS}")
    source = Path(path)
    name = printable(source.name)
    if source.is_dir():
        photos, spared = dataset_entries(source) if is_dataset(source) else (_files(source), [])
        return _images(*gather([*photos, *spared], memory), str(source), spared)
    if not source.is_file():
        raise DataError(f"{source}: neither a regular file nor a folder; {_KINDS}")
    if ARCHIVE_NAME.search(name):
        return _images(*read_archive(source, memory), str(source))
    idx = _IDX_NAME.search(name)
    if idx or source.suffix.lower() in (".npy", ".npz"):
        arrays = read_idx(source) if idx else read_npy(source)
        return _images(Pictures.of(arrays, name).pictures, [], name)
    pictures, skipped = gather([(source.name, partial(open, source, "rb"))], memory)
    if skipped:
        raise DataError(f"{source}: {skipped[0][1]}; {_KINDS}")
    return _images(pictures, [], name)


def _bundled(photos: Mapping[str, str]) -> list[Entry]:
    """Photos out of packages that are located but not imported: `import sklearn` alone takes 1.6 s."""
    entries: list[Entry] = []
    for photo, place in photos.items():
        module, _, inside = place.partition("/")
        distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[module]
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"the bundled photos need {distribution}; run: pip install 'vqkit[train]'")
        path = Path(spec.submodule_search_locations[0], inside)
        if not path.is_file():
            raise DataError(
                f"{path}: the installed {distribution} lacks this photo; run: pip install --force-reinstall "
                f"{distribution}; or train on images of your own: vqkit train FOLDER"
            )
        entries.append((photo, partial(open, path, "rb")))
    return entries


def _files(folder: Path) -> list[Entry]:
    """Every visible file below, by its relative path, and how to open it or why that cannot be."""
    unlisted: list[OSError] = []
    entries: list[Entry] = []
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unlisted.append):
        here, folders[:] = sorted(name for name in folders if not name.startswith(".")), []
        for name in here:
            # A link may lead back up, or to a place that is read under another name.
            if (target := os.path.realpath(os.path.join(place, name))) not in seen:
                seen.add(target)
                folders.append(name)
        for path in (os.path.join(place, name) for name in files if not name.startswith(".")):
            # Opening a named pipe would wait forever.
            read = partial(open, path, "rb") if os.path.isfile(path) else "a broken link or no regular file"
            entries.append((os.path.relpath(path, folder), read))
    entries += [(os.path.relpath(error.filename, folder), f"cannot be listed: {error.strerror}") for error in unlisted]
    return sorted(entries, key=lambda entry: printable(entry[0]))


def _images(
    pictures: Sequence[Picture], skipped: Sequence[Skipped], source: str, spared: Iterable[Entry] = ()
) -> Images:
    """Parts the pictures in those to train on and those held out: the `spared`, or where there are none every k-th."""
    if not pictures:
        found = f"{len(skipped)} other files ({': '.join(skipped[0])})" if skipped else "no file at all"
        raise DataError(f"{source}: no image in it, {found}; {_KINDS}")
    every = max(10, -(-len(pictures) // 100))
    names = {name for name, _ in spared}
    held_out = [picture.name in names if names else i % every == every - 1 for i, picture in enumerate(pictures)]
    together = Pictures(tuple(pictures), max(picture.shape[2] for picture in pictures))
    images, others = together.where(np.logical_not(held_out)), together.where(held_out)
    if not images:
        raise DataError(f"{source}: all {len(others)} images are held out, none is left to train on")
    kind = f"{'gray' if together.channels == 1 else 'RGB'} image{'s' if len(images) > 1 else ''}"
    description = f"{printable(source)}: {len(images)} {kind}"
    description += f", {len(others)} more held out" if len(others) else ""
    description += f", {len(skipped)} other file{'s' if len(skipped) > 1 else ''} skipped" if skipped else ""
    return Images(images, others, tuple(skipped), description)
