"""Originals beside reconstructions beside their difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vqkit.pages import Html, Section, encode_within, image_row, image_tag, number, tag
from vqkit.report.summary import Comparison

MOST = 8  # comparisons shown
AMPLIFIED = 4
SMALL = 96  # Images with no longer side are shown enlarged, several to a line.
DETAIL = 96  # side of the crop that is shown pixel by pixel


def comparisons(shown: Sequence[Comparison], most_bytes: int) -> Section:
    """Held-out images first, the first with a detail; all together in `most_bytes` before base64."""
    ordered = sorted(shown, key=lambda c: c.split != "held out")[:MOST]
    if not ordered:
        return Section("Reconstructions", [], "This run compared no images.")
    small = all(max(c.original.shape[:2]) <= SMALL for c in ordered)
    detail = [] if small else _detail(ordered[0])
    rows: list[Html] = []
    places = [ordered[0], *detail, *ordered[1:]]
    for c in places:
        row, size = _row(c, most_bytes // (len(places) - len(rows)))
        rows.append(row)
        most_bytes -= size  # What one image leaves over, the next may use.
    left_out = f" The first {MOST} of {len(shown)} images are shown." if len(shown) > MOST else ""
    lead = (
        "Each original, what the decoder makes of its codes, and the absolute difference of the two, "
        f"amplified {AMPLIFIED} times.{left_out}"
    )
    return Section("Reconstructions", [tag("div", {"class": "rows small" if small else "rows"}, *rows)], lead)


def _row(c: Comparison, most_bytes: int) -> tuple[Html, int]:
    height, width, _ = c.original.shape
    error = AMPLIFIED * np.abs(c.original.astype(np.int16) - c.reconstruction)
    arrays = (c.original, c.reconstruction, np.minimum(error, 255).astype(np.uint8))
    images = encode_within(arrays, most_bytes)
    labels = ("original", "reconstruction", f"difference \N{MULTIPLICATION SIGN}{AMPLIFIED}")
    cells = []
    for label, image in zip(labels, images, strict=True):
        alt = f"{c.name}, {label}"
        cells.append((label, image_tag(image, alt, "pixelated" if max(height, width) <= SMALL else "auto")))
    note = f"{c.split} · {width} \N{MULTIPLICATION SIGN} {height}"
    if images[0].scale < 1:
        note += f", shown at {images[0].scale:.0%}"
    note += " · exact" if c.psnr == np.inf else f" · {number(float(c.psnr))} dB"
    return image_row(cells, c.name, note), sum(len(image.data) for image in images)


def _detail(c: Comparison) -> list[Comparison]:
    """The square of 96 pixels, on a grid of 96, with the greatest error; none of a small image."""
    height, width, _ = c.original.shape
    if min(height, width) < 2 * DETAIL:
        return []
    squared = (c.original.astype(np.float64) - c.reconstruction) ** 2
    down, right = height // DETAIL, width // DETAIL
    blocks = squared[: down * DETAIL, : right * DETAIL].reshape(down, DETAIL, right, -1).mean((1, 3))
    top, left = (int(i) * DETAIL for i in np.unravel_index(blocks.argmax(), blocks.shape))
    window = (slice(top, top + DETAIL), slice(left, left + DETAIL))
    mse = float(blocks.max())
    psnr = 10 * np.log10(255**2 / mse) if mse else np.inf
    name = f"{c.name}: where it is worst, pixel by pixel"
    return [Comparison(name, c.original[window], c.reconstruction[window], psnr, c.split)]
