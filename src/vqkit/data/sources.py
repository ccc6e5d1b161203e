"""`open_images`: whatever a person calls their images, as one immutable value."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqkit.data.arrays import read_idx, read_npy
from vqkit.data.files import DataError, NoSuchPath, read_image

if TYPE_CHECKING:
    from collections.abc import Iterator

_IDX_NAME = re.compile(r"(-ubyte|\.idx\d?)(\.gz)?$", re.IGNORECASE)
_KINDS = "DATA is a folder of images, an image, a .npy, .npz or idx file"

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
    """Images in memory, each (H, W, C) uint8, C one number for all: 1 where every image is gray, else 3.

    `held_out` is for evaluation; it is empty where there were too few to spare one. `skipped` gives name and
    reason for each file in a folder that gave no image.
    """

    images: tuple[np.ndarray, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    held_out: tuple[np.ndarray, ...] = field(repr=False)
    held_out_names: tuple[str, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = field(repr=False)
    description: str


def open_images(path: str | os.PathLike[str] | None = None) -> Images:
    """The images at a path; without one the bundled photos, with `chelsea` held out.

    A path is a folder (searched recursively, in the order of names, hidden names ignored, each linked
    folder read once), one image of any kind that Pillow opens, a .npy, a .npz, or an idx file or idx.gz.

    **Held out** of n images, in order, is every k-th, k = max(10, ceil(n / 100)): a tenth, at most 100,
    spread over all folders, the same in every run. Of fewer than 10, none: each is worth more in training.

    Raises: `NoSuchPath`; `DataError` for any other fault of the data; ImportError where an extra is missing.
    """
    if path is None:
        training, held_out = (
            tuple(_bundled(photo) for photo in photos.values()) for photos in (BUNDLED, BUNDLED_HELD_OUT)
        )
        description = f"bundled photos {', '.join(BUNDLED)}; {', '.join(BUNDLED_HELD_OUT)} held out"
        return Images(training, tuple(BUNDLED), held_out, tuple(BUNDLED_HELD_OUT), (), description)
    # Not Path.exists: to Path the empty path, which an unset shell variable gives, is the current folder.
    if not os.path.exists(path):
        raise NoSuchPath(f"{os.fspath(path)!r}: no such file or folder; check the spelling; {_KINDS}")
    source = Path(path)
    name = _printable(source.name)
    if source.is_dir():
        return _folder(source)
    if not source.is_file():
        raise DataError(f"{source}: neither a regular file nor a folder; {_KINDS}")
    idx = _IDX_NAME.search(name)
    if idx or source.suffix.lower() in (".npy", ".npz"):
        images = read_idx(source) if idx else read_npy(source)
        return _collection(images, [f"{name}[{i}]" for i in range(len(images))], [], name)
    try:
        return _collection([read_image(source)], [name], [], name)
    except DataError as error:
        raise DataError(f"{source}: {error}; {_KINDS}") from None


def _bundled(photo: str) -> np.ndarray:
    """A photo out of a package that is located but not imported: `import sklearn` alone takes 1.6 s."""
    module, _, inside = photo.partition("/")
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
    return read_image(path)


def _folder(folder: Path) -> Images:
    images, names, skipped = [], [], []
    for name, fault in sorted(_walk(folder)):
        try:
            if fault:
                raise DataError(fault)
            images.append(read_image(folder / name))
            names.append(_printable(name))
        except DataError as error:
            skipped.append((_printable(name), str(error)))
    if not images:
        found = f"{len(skipped)} other files ({': '.join(skipped[0])})" if skipped else "no file at all"
        raise DataError(f"{folder}: no image in this folder, {found}; {_KINDS}")
    return _collection(images, names, skipped, str(folder))


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Every visible file below, as its relative path and why it cannot be opened, if that is known."""
    unlisted: list[OSError] = []
    seen = {folder.resolve()}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unlisted.append):
        here, folders[:] = sorted(name for name in folders if not name.startswith(".")), []
        for name in here:
            # A link may lead back up, or to a place that is read under another name.
            if (target := Path(place, name).resolve()) not in seen:
                seen.add(target)
                folders.append(name)
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            # Opening a named pipe would wait forever.
            yield str(path.relative_to(folder)), "" if path.is_file() else "a broken link or no regular file"
    for error in unlisted:
        yield str(Path(error.filename).relative_to(folder)), f"cannot be listed: {error.strerror}"


def _collection(images: list[np.ndarray], names: list[str], skipped: list[tuple[str, str]], source: str) -> Images:
    channels = max(image.shape[-1] for image in images)
    images = [image if image.shape[-1] == channels else np.repeat(image, 3, axis=2) for image in images]
    every = max(10, -(-len(images) // 100))
    spared = slice(every - 1, None, every)
    held_out, held_out_names = tuple(images[spared]), tuple(names[spared])
    del images[spared], names[spared]
    description = (
        f"{_printable(source)}: {len(images)} {'gray' if channels == 1 else 'RGB'} images, "
        f"{len(held_out)} more held out, {len(skipped)} other files skipped"
    )
    return Images(tuple(images), tuple(names), held_out, held_out_names, tuple(skipped), description)


def _printable(name: str) -> str:
    """A name without the lone surrogates that stand for bytes that are no UTF-8; no page could hold them."""
    return os.fsencode(name).decode("utf-8", "replace")
