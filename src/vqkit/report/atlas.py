"""What every code decodes to, as one map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vqkit.pages import Encoded, Html, Section, encode, tag

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt8

BYTES = 450_000  # of the image, before base64
MOST = 8192  # codes shown
DEAD = 150  # Codes never chosen keep a quarter of their contrast, around this grey.
SIDE = 24  # pixels kept of a code's tile: at 32 tiles to a line of 1000 pixels more cannot be seen


def atlas(tiles: UInt8[np.ndarray, "K h w c"], counts: Integer[np.ndarray, " K"]) -> Section:
    """One image of all codes in use, arranged by brightness and colour, then the codes never chosen, greyed.

    A tile's tooltip holds its code's index and share.
    """
    tiles = _shrunk(tiles, SIDE)
    order = np.argsort(counts, kind="stable")[::-1][:MOST]
    used = order[counts[order] > 0]
    columns = max(12, math.ceil(math.sqrt(2 * len(order))))  # 12, lest few codes become posters
    order = np.concatenate([arranged(tiles, used, columns), np.sort(order[counts[order] == 0])])
    shown = tiles[order].copy()
    unused = shown[len(used) :]
    unused[:] = (0.25 * unused.mean(-1, keepdims=True) + 0.75 * DEAD).astype(np.uint8)
    image = _sprite(shown, columns)
    rows = math.ceil(len(order) / columns)
    share = counts / max(1, counts.sum())
    words = f"{len(order)} codes as tiles: {len(used)} in use, {len(order) - len(used)} never chosen"
    cells = (_cell(place, columns, int(k), float(share[k])) for place, k in enumerate(order))
    picture = tag(
        "svg",
        {"class": "atlas", "viewBox": f"0 0 {columns} {rows}", "role": "img", "aria-label": words},
        tag("image", {"href": image.uri(), "width": columns, "height": rows, "preserveAspectRatio": "none"}),
        tag("path", {"class": "gaps", "d": _gaps(columns, rows, range(len(used), len(order)))}),
        tag("g", {"class": "cells"}, *cells),
    )
    within = "from warm to cool" if tiles.shape[-1] == 3 else "from flat to structured"
    lead = (
        "What each code decodes to when a whole image is that code. Rows run from dark to light, "
        f"each row {within}. Rest the pointer on a tile for its index and its share of all vectors."
    )
    if len(used) < len(order):
        lead += f" The last {len(order) - len(used):,}, greyed and struck through, were never chosen."
    if len(order) < len(tiles):
        lead += f" The {MOST:,} most used of {len(tiles):,} are shown."
    return Section("Atlas of the codes", [picture], lead)


def arranged(
    tiles: UInt8[np.ndarray, "K h w c"], codes: Integer[np.ndarray, " n"], columns: int
) -> Integer[np.ndarray, " n"]:
    """The codes row by row: rows by brightness, within a row by red minus blue or, if grey, by contrast."""
    pixels = tiles[codes].astype(np.float64)
    brightness = pixels.mean((1, 2, 3))
    colour = (pixels[..., 0] - pixels[..., -1]).mean((1, 2))
    second = -colour if tiles.shape[-1] == 3 else pixels.std((1, 2, 3))
    by_brightness = np.argsort(brightness, kind="stable")
    row = np.empty(len(codes), np.int64)
    row[by_brightness] = np.arange(len(codes)) // columns
    return codes[np.lexsort((second, row))]


def _sprite(tiles: UInt8[np.ndarray, "n h w c"], columns: int) -> Encoded:
    """All tiles in one exact image, scaled down alike until it fits its bytes.

    PNG, because the blocks of a lossy format would bleed from each tile into its neighbours.
    """
    count, rows = len(tiles), math.ceil(len(tiles) / columns)
    side = SIDE
    while True:
        small = _shrunk(tiles, side)
        sheet = np.zeros((rows * columns, *small.shape[1:3], 4), np.uint8)  # transparent where no tile is
        sheet[:count, ..., :3], sheet[:count, ..., 3] = small, 255
        sheet = sheet.reshape(rows, columns, *sheet.shape[1:]).transpose(0, 2, 1, 3, 4)
        image = encode(sheet.reshape(rows * small.shape[1], columns * small.shape[2], 4))
        if len(image.data) <= BYTES or side == 1:
            return image
        side = max(1, min(side - 1, int(side * (BYTES / len(image.data)) ** 0.5)))


def _shrunk(tiles: UInt8[np.ndarray, "n h w c"], side: int) -> UInt8[np.ndarray, "n h2 w2 c"]:
    """Tiles of at most side x side pixels, each the mean of the pixels it stands for."""
    result = tiles
    for axis in (1, 2):
        length = result.shape[axis]
        if length > side:
            edges = np.linspace(0, length, side, endpoint=False).astype(int)
            spans = np.diff(edges, append=length).reshape([-1 if i == axis else 1 for i in range(4)])
            total = np.add.reduceat(result, edges, axis=axis, dtype=np.float32)
            result = np.round(total / spans).astype(np.uint8)
    return result


def _gaps(columns: int, rows: int, struck: range) -> str:
    """Lines between the tiles, and one across each tile of a code never chosen."""
    upright = "".join(f"M{x} 0V{rows}" for x in range(1, columns))
    level = "".join(f"M0 {y}H{columns}" for y in range(1, rows))
    return upright + level + "".join(f"M{i % columns} {i // columns}l1 1" for i in struck)


def _cell(place: int, columns: int, code: int, share: float) -> Html:
    y, x = divmod(place, columns)
    words = f"{code} · {share:.2%}" if share else f"{code} · never"
    return tag("path", {"d": f"M{x} {y}h1v1h-1z"}, tag("title", None, words))
