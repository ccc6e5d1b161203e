"""What a report is made from: plain numbers and arrays, so that any trainer in any framework can fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vqkit.pages import Value

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt8


class Comparison(NamedTuple):
    """An image and what came back of it, (height, width, channels) uint8 both; `psnr` in dB at peak 255."""

    name: str
    original: UInt8[np.ndarray, "h w c"]
    reconstruction: UInt8[np.ndarray, "h w c"]
    psnr: float
    split: Literal["held out", "training"]


@dataclass(frozen=True)
class RunSummary:
    """Everything that the page of a run shows.

    Args:
        title: heading of the page.
        config: the resolved configuration; nested mappings are shown with dotted names.
        metrics: rows with `step` and any of `loss`, `reconstruction`, `codebook`, `commitment` (one chart)
            and other numbers (a chart each). A key that a row lacks was not measured then; NaN is a gap.
        comparisons: the first eight are shown.
        counts: (K,) how often each code was chosen over the evaluation set.
        atlas: (K, height, width, channels) uint8, what each code decodes to when the whole grid is that code.
        figures: the run's numbers in the order to be shown; a unit stands in brackets, "PSNR (dB)".
        headline: names in `figures` that head the page, without units; absent ones are passed over.
        provenance: how it was made: command, versions, device, time.
        subtitle: a line under the title.

    Raises:
        ValueError: arrays of other shapes or types, negative counts, metrics without `step`.
    """

    title: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    comparisons: Sequence[Comparison]
    counts: Integer[np.ndarray, " K"]
    atlas: UInt8[np.ndarray, "K h w c"]
    figures: Mapping[str, Value]
    headline: tuple[str, ...] = ("PSNR", "SSIM", "bits per pixel", "codes used", "perplexity")
    provenance: Mapping[str, Value] = field(default_factory=dict)
    subtitle: str = ""

    def __post_init__(self) -> None:
        counts, atlas = self.counts, self.atlas
        if counts.ndim != 1 or not counts.size or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise ValueError(f"counts must be (K,) integers from 0 up, got {counts.dtype} {counts.shape}")
        if atlas.ndim != 4 or len(atlas) != len(counts) or not _is_image(atlas[0]):
            raise ValueError(
                f"atlas must be uint8 ({len(counts)}, height, width, 1 or 3), one image for each of counts, "
                f"got {atlas.dtype} {atlas.shape}"
            )
        if any("step" not in row for row in self.metrics):
            raise ValueError("metrics: a row has no 'step', so it has no place on the charts: add it")
        for c in self.comparisons:
            one, other = c.original, c.reconstruction
            if one.shape != other.shape or not (_is_image(one) and _is_image(other)):
                raise ValueError(
                    f"comparison {c.name!r}: both must be uint8 (height, width, 1 or 3) of one shape, "
                    f"got {one.dtype} {one.shape} and {other.dtype} {other.shape}"
                )


def _is_image(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (1, 3) and array.size > 0
