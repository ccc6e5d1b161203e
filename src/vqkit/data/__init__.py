"""Sources of images and arrays, the bundled sample photos, and random crops of them.

Reading needs NumPy and Pillow only. PyTorch is imported with the first name that needs it, so that a
command line can say what is wrong with a path without the two seconds that PyTorch takes to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqkit.data.augment import NoAugmentation, Photographic
from vqkit.data.files import DataError, NoSuchPath
from vqkit.data.pictures import Pictures
from vqkit.data.sources import Images, open_images

if TYPE_CHECKING:
    from vqkit.data.crops import RandomCrops, to_image, to_tensor
    from vqkit.data.loading import load, workers_for

__all__ = [
    "DataError", "Images", "NoAugmentation", "NoSuchPath", "Photographic", "Pictures", "RandomCrops", "load",
    "open_images", "to_image", "to_tensor", "workers_for",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"vqkit.data.{'loading' if name in ('load', 'workers_for') else 'crops'}"), name)
