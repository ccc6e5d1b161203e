"""One image, of any kind that Pillow opens, as 8-bit gray or RGB; and what can be wrong with a person's data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from PIL import Image as PillowImage

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")
Read = Callable[[], Any]  # opens the bytes of one image, as often as it is called and in any process


class DataError(ValueError):
    """Data that cannot be used; the message is one line: the path, the value, the constraint, the fix."""


class NoSuchPath(DataError, FileNotFoundError):
    """The path that was given does not exist: a slip in the command rather than a fault of the data."""


def one_line(error: Exception) -> str:
    """What another library's exception says, for a place inside a `DataError`."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(name: str) -> str:
    """A name with escapes for what would break a line, command a terminal, or stands for bytes that are no UTF-8."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], name)


def refuse_bomb(unpacked: int, packed: int) -> None:
    """Raises `DataError` where this many bytes cannot have become that many with images in them."""
    # Photos hardly shrink, flat drawings 50 times, bombs 1,000 times.
    if unpacked > 64 * 2**20 + 100 * packed:
        raise DataError(
            f"{packed:,} bytes unpack to {unpacked:,} or more: a decompression bomb; unpack it yourself if you trust it"
        )


@contextmanager
def opened(read: Read) -> Iterator[PillowImage.Image]:
    """An image of which Pillow has read the header.

    Raises: `DataError` for any fault found here or in the block; the message is the reason, without a path.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs Pillow; run: pip install 'vqkit[train]'") from None
    try:
        with warnings.catch_warnings():
            # Pillow warns of broken metadata, which concerns no pixel; and from 89 million pixels on of a
            # decompression bomb, but decodes it, and only from twice as many refuses.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with read() as file, Image.open(file) as image:
                if image.format == "EPS":
                    raise DataError("PostScript is a program, which Pillow would run by Ghostscript; save a PNG")
                yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image that Pillow can open") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # on damaged files Pillow raises nearly anything, struct.error included
        raise DataError(f"cannot be decoded: {one_line(error)}") from None


def shape_of(image: PillowImage.Image) -> tuple[int, int, int]:
    """(H, W, C) of what `pixels_of` will give, from the header alone."""
    from PIL.Image import Image

    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow have turned this size already
        width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    # Not PngImageFile.getexif, which decodes the image in search of what stands behind its pixels.
    turned = Image.getexif(image).get(0x0112) in (5, 6, 7, 8)
    return (width, height, channels_of(image)) if turned else (height, width, channels_of(image))


def channels_of(image: PillowImage.Image) -> int:
    """1 where the mode is gray: 1, L, LA, I, I;16, F; else 3."""
    return 1 if image.mode[0] in "1LIF" else 3


def pixels_of(image: PillowImage.Image) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an image, or of an animation's first frame.

    The EXIF orientation is applied, transparency composited over white; 16-bit gray becomes round(v / 257), floats
    within [0, 1] round(255 v).
    """
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    channels = channels_of(image)
    # Pillow holds 16-bit gray as I;16, but that of PGM, and in older versions that of PNG, as 32-bit I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif image.mode == "I":
        raise DataError("32-bit integers (mode I) have no known range; save 8 bits per channel")
    elif image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN, if there is any, is both
            raise DataError(f"32-bit floats from {low:g} to {high:g}, expected 0 to 1; rescale them, or save 8 bits")
        pixels = np.rint(255 * values).astype(np.uint8)
    elif image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pixels = over_white(np.asarray(image.convert("RGBA")))[..., :channels]
    else:
        mode = "L" if channels == 1 else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(image.height, image.width, channels)


def over_white(rgba: UInt8[np.ndarray, "... 4"]) -> UInt8[np.ndarray, "... 3"]:
    """An image with alpha seen before a white wall: round((c a + 255 (255 - a)) / 255), in integers."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
