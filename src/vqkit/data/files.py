"""One image file, of any kind that Pillow opens, as 8-bit gray or RGB; and what can be wrong with a person's data."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import UInt8
    from PIL import Image as PillowImage


class DataError(ValueError):
    """Data that cannot be used; the message is one line: the path, the value, the constraint, the fix."""


class NoSuchPath(DataError, FileNotFoundError):
    """The path that was given does not exist: a slip in the command rather than a fault of the data."""


def one_line(error: Exception) -> str:
    """What another library's exception says, for a place inside a `DataError`."""
    return " ".join(str(error).split()) or type(error).__name__


def read_image(path: Path) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an image file, or of an animation's first frame, (H, W, 1) where its mode is gray, else (H, W, 3).

    The EXIF orientation is applied, transparency composited over white; 16-bit gray becomes round(v / 257).

    Raises: `DataError` whose message is the reason alone, for the caller to put the path before it.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs Pillow; run: pip install 'vqkit[train]'") from None
    try:
        with warnings.catch_warnings():
            # Pillow warns of broken metadata, which concerns no pixel; and from 89 million pixels on of a
            # decompression bomb, but decodes it, and only from twice as many refuses.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return _pixels(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image that Pillow can open") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # on damaged files Pillow raises nearly anything, struct.error included
        raise DataError(f"cannot be decoded: {one_line(error)}") from None


def _pixels(image: PillowImage.Image) -> UInt8[np.ndarray, "H W C"]:
    # Pillow holds 16-bit gray as I;16, but that of PGM, and in older versions that of PNG, as 32-bit I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None]
    if image.mode in ("F", "I"):
        raise DataError(f"32-bit pixels (mode {image.mode}) have no known range; save 8 bits per channel")
    channels = 1 if image.mode in ("1", "L", "LA") else 3
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return over_white(np.asarray(image.convert("RGBA")))[..., :channels]
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(image.height, image.width, channels)


def over_white(rgba: UInt8[np.ndarray, "... 4"]) -> UInt8[np.ndarray, "... 3"]:
    """An image with alpha seen before a white wall: round((c a + 255 (255 - a)) / 255), in integers."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
