"""A run as one page: put the sections in order, write the file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqkit.pages import Section, Value, folded, headline, key_values, page
from vqkit.report.atlas import atlas
from vqkit.report.comparisons import Comparison, comparisons
from vqkit.report.curves import curves
from vqkit.report.usage import usage

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt8

HEADLINE = ("PSNR", "SSIM", "bits per pixel", "codes used", "perplexity")
MOST_BYTES = 2_900_000  # of a page, less its head and captions, which the last 100,000 are for
MOST_PHOTOS = 1_500_000  # of the photos, before base64: more than this shows nothing more
MOST_TEXT = 400  # A longer setting is cut, so that no configuration makes the page large.


@dataclass(frozen=True)
class RunSummary:
    """Everything that the page of a run shows: plain numbers and arrays, so that any trainer can fill it.

    `metrics` has rows with `step`, any of `loss`, `reconstruction`, `codebook`, `commitment` (one chart) and other
    numbers (a chart each); NaN is a gap. A unit stands in brackets at the end of a figure's name: "PSNR (dB)".
    """

    title: str
    config: Mapping[str, Any]  # resolved; nested mappings are shown with dotted names
    metrics: Sequence[Mapping[str, float]]
    comparisons: Sequence[Comparison]  # at least one; the first is shown in detail too
    counts: Integer[np.ndarray, " K"]  # how often each code was chosen over the evaluation set
    atlas: UInt8[np.ndarray, "K h w c"]  # what each code decodes to where all its neighbours are that code
    figures: Mapping[str, Value]
    provenance: Mapping[str, Value]
    subtitle: str = ""


def render(run: RunSummary) -> str:
    """The report of a run as one self-contained HTML document of less than 3 MB."""
    names = {name.partition(" (")[0]: name for name in run.figures}
    top = {names[name]: run.figures[names[name]] for name in HEADLINE if name in names}
    settings = dict(_settings(run.config))
    fold = folded(f"Configuration, {len(settings)} settings", key_values(settings, "Configuration"))
    others = [
        curves(run.metrics),
        usage(run.counts),
        atlas(run.atlas, run.counts),
        Section("All numbers", [key_values(run.figures, "All numbers")]),
        Section("How this was made", [key_values(run.provenance, "How this was made"), fold]),
    ]
    # The photos get what the rest leaves, as they can be had at any size; base64 makes 4 bytes of 3.
    used = sum(len(part.encode("utf-8", "replace")) for section in others for part in section.content)
    photos = comparisons(run.comparisons, min(MOST_PHOTOS, max(0, MOST_BYTES - used) * 3 // 4))
    return page(run.title, [photos, *others], run.subtitle, headline(top))


def write_report(path: str | os.PathLike[str], run: RunSummary) -> None:
    """Write the report of a run; a page that is already there is replaced in one step, or stays as it is.

    Raises: OSError where the directory is missing or cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            # Names of files that are no valid UTF-8 arrive as lone surrogates, which no file can hold.
            file.write(render(run).encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as text under dotted names: {"a": {"b": 1}} gives ("a.b", "1")."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{prefix}{name}.")
        else:
            text = str(value)
            yield prefix + name, text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"
