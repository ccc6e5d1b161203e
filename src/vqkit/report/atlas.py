"""What every code decodes to, as one map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vqkit.pages import Encoded, Html, Section, encode, tag

if TYPE_CHECKING:
    from jaxtyping import Float, Integer, UInt8

BYTES = 450_000  # of the image, before base64
MOST = 8192  # codes shown
DEAD = 150  # Codes never chosen keep a quarter of their contrast, around this grey.
SIDE = 24  # pixels kept of a code's tile: at 32 tiles to a line of 1000 pixels more cannot be seen


def atlas(tiles: UInt8[np.ndarray, "K h w c"], counts: Integer[np.ndarray, " K"]) -> Section:
    """One image of all codes in use, arranged by brightness and colour, then the codes never chosen, greyed."""
    order = np.argsort(counts, kind="stable")[::-1][:MOST]
    columns = max(12, math.ceil(math.sqrt(2 * len(order))))  # 12, lest few codes become posters
    rows = math.ceil(len(order) / columns)
    used, unused = order[counts[order] > 0], np.sort(order[counts[order] == 0])
    used = used[_arranged(tiles[used].astype(np.float32), columns)]
    shown = tiles[[*used, *unused]]
    shown[len(used) :] = 0.25 * shown[len(used) :].mean(-1, keepdims=True) + 0.75 * DEAD
    share = counts / counts.sum()
    words = f"{len(order)} codes as tiles: {len(used)} in use, {len(unused)} never chosen"
    cells = (_cell(place, columns, int(k), float(share[k])) for place, k in enumerate([*used, *unused]))
    size = {"width": columns, "height": rows}
    picture = tag(
        "svg",
        {"class": "atlas", "viewBox": f"0 0 {columns} {rows}", "role": "img", "aria-label": words},
        tag("image", {"href": _sprite(shown, columns).uri(), **size, "preserveAspectRatio": "none"}),
        tag("path", {"class": "gaps", "d": _gaps(columns, rows, range(len(used), len(order)))}),
        tag("g", {"class": "cells"}, *cells),
    )
    within = "from warm to cool" if tiles.shape[-1] == 3 else "from flat to structured"
    lead = (
        f"What each code decodes to when a whole image is that code. Rows run from dark to light, each row {within}. "
        "Rest the pointer on a tile for its index and its share of all vectors."
    )
    if len(unused):
        lead += f" The last {len(unused):,}, greyed and struck through, were never chosen."
    if len(order) < len(tiles):
        lead += f" The {MOST:,} most used of {len(tiles):,} are shown."
    return Section("Atlas of the codes", [picture], lead)


def _arranged(tiles: Float[np.ndarray, "n h w c"], columns: int) -> Integer[np.ndarray, " n"]:
    """An order row by row: rows by brightness, within a row by red minus blue or, if grey, by contrast."""
    red_minus_blue = (tiles[..., 0] - tiles[..., -1]).mean((1, 2))
    second = -red_minus_blue if tiles.shape[-1] == 3 else tiles.std((1, 2, 3))
    rank = np.argsort(np.argsort(tiles.mean((1, 2, 3)), kind="stable"))
    return np.lexsort((second, rank // columns))


def _sprite(tiles: UInt8[np.ndarray, "n h w c"], columns: int) -> Encoded:
    """The tiles in one image, scaled down alike until it fits its bytes.

    PNG, because the blocks of a lossy format would bleed from each tile into its neighbours.
    """
    n, height, width, _ = tiles.shape
    sheet = np.zeros((-(-n // columns) * columns, height, width, 4), np.uint8)  # transparent where no tile is
    sheet[:n, ..., :3], sheet[:n, ..., 3] = tiles, 255
    picture = sheet.reshape(-1, columns, height, width, 4).swapaxes(1, 2).reshape(-1, columns * width, 4)
    side = min(SIDE, width)
    while True:
        image = encode(picture, side=side * columns)
        if len(image.data) <= BYTES or side == 1:
            return image
        side = max(1, min(side - 1, int(side * (BYTES / len(image.data)) ** 0.5)))


def _gaps(columns: int, rows: int, struck: range) -> str:
    """Lines between the tiles, and one across each tile of a code never chosen."""
    upright = "".join(f"M{x} 0V{rows}" for x in range(1, columns))
    level = "".join(f"M0 {y}H{columns}" for y in range(1, rows))
    return upright + level + "".join(f"M{i % columns} {i // columns}l1 1" for i in struck)


def _cell(place: int, columns: int, code: int, share: float) -> Html:
    y, x = divmod(place, columns)
    used = f"{share:.2%}" if share else "never"
    return tag("path", {"d": f"M{x} {y}h1v1h-1z"}, tag("title", None, f"{code} · {used}"))
