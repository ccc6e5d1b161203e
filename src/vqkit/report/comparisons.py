"""Originals beside what came back of them: of one run with the difference, or of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vqkit.pages import Section, encode_within, image_row, tag

if TYPE_CHECKING:
    from jaxtyping import UInt8

AMPLIFIED = 4
DETAIL = 96  # Side of the crop shown pixel by pixel; images of no longer side are enlarged, several to a line.


class Comparison(NamedTuple):
    """An image and what came back of it, with 1 or 3 channels; `psnr` in dB at peak 255."""

    name: str
    original: UInt8[np.ndarray, "h w c"]
    reconstruction: UInt8[np.ndarray, "h w c"]
    psnr: float
    split: Literal["held out", "training"]

    @property
    def quality(self) -> str:
        return "exact" if self.psnr == np.inf else f"{self.psnr:.2f} dB"


def comparisons(runs: Mapping[str, Sequence[Comparison]], most_bytes: int) -> Section:
    """A line for each image that all runs show, the first with a detail; all in `most_bytes` before base64."""
    first, *others = runs.values()
    by_name = [{c.name: c for c in other} for other in others]
    lines = [(c, *(of[c.name] for of in by_name if c.name in of)) for c in first]
    # Under one name two directories may hold two images.
    lines = [of for of in lines if len(of) == len(runs) and all(np.array_equal(c[1], of[0][1]) for c in of)]
    if not lines:
        return Section("Reconstructions", [], "No image is shown by both runs, so there are none to set side by side.")
    lead = f"Each original, what the decoder makes of its codes, and the absolute error, amplified {AMPLIFIED} times."
    if others:
        wins = [_nearer(of) for of in lines]
        one, two = (f"{run} is nearer in {wins.count(i)}" for i, run in enumerate(runs))
        left = len({c.name for shown in runs.values() for c in shown}) - len(lines)
        out = f" Left out: {left} that only one shows, or that differ under one name." if left else ""
        lead = f"The {len(lines)} images that both runs show. By PSNR {one}, {two}.{out}"
    lines[1:1] = _detail(lines[0])
    small = all(max(of[0].original.shape[:2]) <= DETAIL for of in lines)
    figures = []
    for i, of in enumerate(lines):
        height, width, _ = of[0].original.shape
        nearer, arrays = _nearer(of), {"original": of[0].original}
        for k, (run, c) in enumerate(zip(runs, of, strict=True)):
            label = f"{run if others else 'reconstruction'} · {c.quality}{' · nearer' * (k == nearer)}"
            arrays[label] = c.reconstruction
        if not others:
            error = AMPLIFIED * np.abs(of[0].original.astype(np.int16) - of[0].reconstruction)
            arrays[f"difference \N{MULTIPLICATION SIGN}{AMPLIFIED}"] = error.clip(0, 255).astype(np.uint8)
        images = encode_within([*arrays.values()], most_bytes // (len(lines) - i))
        most_bytes -= sum(len(image.data) for image in images)  # What one line leaves over, the next may use.
        shrunk = f", shown at {images[0].scale:.0%}" if images[0].scale < 1 else ""
        note = f"{width} \N{MULTIPLICATION SIGN} {height}{shrunk} · {' / '.join(dict.fromkeys(c.split for c in of))}"
        scaling: Literal["pixelated", "auto"] = "pixelated" if max(height, width) <= DETAIL else "auto"
        figures.append(image_row([*zip(arrays, images, strict=True)], of[0].name, note, scaling))
    grid = tag("div", {"class": "rows" + " small" * small + " two" * bool(others)}, *figures)
    return Section("Reconstructions", [grid], lead)


def _nearer(of: Sequence[Comparison]) -> int | None:
    """Which of two is nearer to the original; neither, where the page shows no difference."""
    return None if of[0].quality == of[-1].quality else int(of[1].psnr > of[0].psnr)


def _detail(of: tuple[Comparison, ...]) -> list[tuple[Comparison, ...]]:
    """The square of 96 pixels, on a grid of 96, where one is worst or two differ most; none of a small image."""
    a, b = [of[0].original, *(c.reconstruction for c in of)][-2:]
    down, right = (side // DETAIL for side in a.shape[:2])
    if min(down, right) < 2:
        return []
    squared = (a.astype(np.float64) - b)[: down * DETAIL, : right * DETAIL] ** 2
    errors = squared.reshape(down, DETAIL, right, -1).mean((1, 3))
    top, left = (int(i) * DETAIL for i in np.unravel_index(errors.argmax(), errors.shape))
    window = (slice(top, top + DETAIL), slice(left, left + DETAIL))
    name = f"{of[0].name}: where {'it is worst' if len(of) == 1 else 'the two differ most'}, pixel by pixel"
    detail = []
    for c in of:
        x, x_hat = c.original[window], c.reconstruction[window]
        error = float(((x.astype(np.float64) - x_hat) ** 2).mean())
        detail.append(Comparison(name, x, x_hat, 10 * math.log10(255**2 / error) if error else math.inf, c.split))
    return [tuple(detail)]
