"""Arrays as images inside the page: encoded to fit a number of bytes, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vqkit.pages.document import Html, tag

if TYPE_CHECKING:
    from jaxtyping import UInt8

MOST_SIDE = 720  # pixels: twice what a third of the page shows


class Encoded(NamedTuple):
    """An encoded image; `width` and `height` are its array's, `scale` is what was kept of these sides."""

    data: bytes
    format: Literal["png", "webp"]
    width: int
    height: int
    scale: float

    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:image/{self.format};base64,{base64.b64encode(self.data).decode()}"


def encode(array: UInt8[np.ndarray, "h w c"], format: Literal["png", "webp"] = "png", side: int = 1 << 16) -> Encoded:
    """Encode an image of 1 (grey), 3 (RGB) or 4 (RGBA) channels, area-averaged to sides of at most `side`.

    PNG is exact; WebP at quality 90 takes about a tenth of its bytes for a photo.
    """
    from PIL import Image

    height, width, channels = array.shape
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    file = io.BytesIO()
    image.save(file, format, quality=90, optimize=True)
    return Encoded(file.getvalue(), format, width, height, image.width / width)


def encode_within(arrays: Sequence[UInt8[np.ndarray, "h w c"]], most_bytes: int) -> list[Encoded]:
    """Encode images of one shape that are to be compared, so at one scale, in at most `most_bytes` together.

    PNG where that fits unscaled, else WebP, scaled down until it fits, but not below sides of 8 pixels.
    """
    longest = max(arrays[0].shape[:2])
    side = min(longest, MOST_SIDE)
    # No photo shrinks to an eighth as a PNG, so above that the attempt would be for nothing.
    exact = side == longest and sum(array.size for array in arrays) <= 8 * most_bytes
    while True:
        images = [encode(array, "png" if exact else "webp", side) for array in arrays]
        size = sum(len(image.data) for image in images)
        if size <= most_bytes or side <= 8:
            return images
        if not exact:  # Bytes grow about as the pixels do; the 0.9 spares most images a third attempt.
            side = max(8, int(0.9 * side * (most_bytes / size) ** 0.5))
        exact = False


def image_row(
    images: Sequence[tuple[str, Encoded]], name: str, note: str = "", scaling: Literal["pixelated", "auto"] = "auto"
) -> Html:
    """A figure of images side by side, each (label, image), under one name and a note at the line's end.

    "pixelated" shows pixels as squares where the page enlarges them.
    """
    cells = [tag("figcaption", None, tag("strong", None, name), tag("span", {"class": "note"}, note))]
    for label, image in images:
        size = {"width": image.width, "height": image.height}
        img = tag("img", {"src": image.uri(), "alt": f"{name}, {label}", **size, "class": scaling})
        cells.append(tag("div", None, img, tag("span", None, label)))
    return tag("figure", {"class": "row"}, *cells)
