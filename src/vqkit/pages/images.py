"""Arrays as images inside the page: encoded to fit a number of bytes, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vqkit.pages.markup import Html, tag

if TYPE_CHECKING:
    from jaxtyping import UInt8


@dataclass(frozen=True)
class Encoded:
    """An encoded image; `width` and `height` are its array's, `scale` is what was kept of these sides."""

    data: bytes
    format: Literal["png", "webp"]
    width: int
    height: int
    scale: float

    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:image/{self.format};base64,{base64.b64encode(self.data).decode()}"


def encode(
    array: UInt8[np.ndarray, "h w c"],
    format: Literal["png", "webp"] = "png",
    quality: int = 90,
    scale: float = 1.0,
) -> Encoded:
    """Encode an image of 1 (grey), 3 (RGB) or 4 (RGBA) channels, area-averaged to `scale` of its sides.

    PNG is exact; WebP at quality 90 takes about a tenth of its bytes for a photo.

    Raises:
        ValueError: not uint8, or of another shape.
    """
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"array must be uint8 (height, width, 1, 3 or 4 channels), got {array.dtype} {array.shape}: "
            "round to 0..255 and move the channels last"
        )
    height, width, channels = array.shape
    image = Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 else array))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = image.resize(size, Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, format, quality=quality, optimize=True)
    return Encoded(file.getvalue(), format, width, height, min(scale, 1.0))


def encode_within(arrays: Sequence[UInt8[np.ndarray, "h w c"]], most_bytes: int, most_side: int = 720) -> list[Encoded]:
    """Encode images that are to be compared, so at one scale and quality, in at most `most_bytes` together.

    PNG where that fits unscaled, else WebP, scaled down until it fits, but not below sides of 8 pixels.
    """
    side = max(max(array.shape[:2]) for array in arrays)
    # No photo shrinks to an eighth as a PNG, so above that the attempt would be for nothing.
    if side <= most_side and sum(array.size for array in arrays) <= 8 * most_bytes:
        images = [encode(array) for array in arrays]
        if sum(len(image.data) for image in images) <= most_bytes:
            return images
    scale = min(1.0, most_side / side)
    while True:
        images = [encode(array, "webp", scale=scale) for array in arrays]
        size = sum(len(image.data) for image in images)
        if size <= most_bytes or scale * side <= 8:
            return images
        # Bytes grow about as the pixels do; the 0.9 spares most images a third attempt.
        scale = max(8 / side, 0.9 * scale * (most_bytes / size) ** 0.5)


def image_tag(image: Encoded, alt: str, scaling: Literal["pixelated", "auto"] = "auto") -> Html:
    """An <img> with its data inside; "pixelated" shows pixels as squares where the page enlarges them."""
    attributes = {"src": image.uri(), "alt": alt, "width": image.width, "height": image.height}
    return tag("img", {**attributes, "class": scaling})


def image_row(images: Sequence[tuple[str, Html]], name: str, note: str = "") -> Html:
    """A figure of images side by side, each (label, <img>), under one name and a note at the line's end."""
    cells = (tag("div", None, image, tag("span", None, label)) for label, image in images)
    words = tag("figcaption", None, tag("strong", None, name), tag("span", {"class": "note"}, note))
    return tag("figure", {"class": "row"}, words, *cells)
