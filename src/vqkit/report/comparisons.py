"""Originals beside reconstructions beside their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vqkit.pages import Html, Section, encode_within, image_row, number, tag

if TYPE_CHECKING:
    from jaxtyping import UInt8

AMPLIFIED = 4
SMALL = 96  # Images with no longer side are shown enlarged, several to a line.
DETAIL = 96  # side of the crop that is shown pixel by pixel


class Comparison(NamedTuple):
    """An image and what came back of it, with 1 or 3 channels; `psnr` in dB at peak 255."""

    name: str
    original: UInt8[np.ndarray, "h w c"]
    reconstruction: UInt8[np.ndarray, "h w c"]
    psnr: float
    split: Literal["held out", "training"]


def comparisons(shown: Sequence[Comparison], most_bytes: int) -> Section:
    """A line for each, the first with a detail; all together in `most_bytes` before base64."""
    small = all(max(c.original.shape[:2]) <= SMALL for c in shown)
    places = [shown[0], *([] if small else _detail(shown[0])), *shown[1:]]
    rows: list[Html] = []
    for c in places:
        row, size = _row(c, most_bytes // (len(places) - len(rows)))
        rows.append(row)
        most_bytes -= size  # What one image leaves over, the next may use.
    lead = "Each original, what the decoder makes of its codes, and the absolute difference of the two, amplified"
    grid = tag("div", {"class": "rows small" if small else "rows"}, *rows)
    return Section("Reconstructions", [grid], f"{lead} {AMPLIFIED} times.")


def _row(c: Comparison, most_bytes: int) -> tuple[Html, int]:
    height, width, _ = c.original.shape
    error = AMPLIFIED * np.abs(c.original.astype(np.int16) - c.reconstruction)
    images = encode_within((c.original, c.reconstruction, error.clip(0, 255).astype(np.uint8)), most_bytes)
    labels = ("original", "reconstruction", f"difference \N{MULTIPLICATION SIGN}{AMPLIFIED}")
    scaling: Literal["pixelated", "auto"] = "pixelated" if max(height, width) <= SMALL else "auto"
    shrunk = f", shown at {images[0].scale:.0%}" if images[0].scale < 1 else ""
    quality = "exact" if c.psnr == np.inf else f"{number(float(c.psnr))} dB"
    note = f"{c.split} · {width} \N{MULTIPLICATION SIGN} {height}{shrunk} · {quality}"
    figure = image_row(list(zip(labels, images, strict=True)), c.name, note, scaling)
    return figure, sum(len(image.data) for image in images)


def _detail(c: Comparison) -> list[Comparison]:
    """The square of 96 pixels, on a grid of 96, with the greatest error; none of a small image."""
    down, right = (side // DETAIL for side in c.original.shape[:2])
    if min(down, right) < 2:
        return []
    squared = (c.original.astype(np.float64) - c.reconstruction)[: down * DETAIL, : right * DETAIL] ** 2
    errors = squared.reshape(down, DETAIL, right, -1).mean((1, 3))
    top, left = (int(i) * DETAIL for i in np.unravel_index(errors.argmax(), errors.shape))
    window = (slice(top, top + DETAIL), slice(left, left + DETAIL))
    psnr = 10 * np.log10(255**2 / errors.max()) if errors.any() else np.inf
    name = f"{c.name}: where it is worst, pixel by pixel"
    return [Comparison(name, c.original[window], c.reconstruction[window], psnr, c.split)]
