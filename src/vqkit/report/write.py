"""A run as one page: put the sections in order, write the file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqkit.models.storage import replace_file
from vqkit.pages import Html, Section, Value, folded, headline, key_values, page
from vqkit.report.atlas import atlas
from vqkit.report.comparisons import Comparison, comparisons
from vqkit.report.curves import curves
from vqkit.report.usage import usage

if TYPE_CHECKING:
    from jaxtyping import Integer, UInt8

HEADLINE = ("PSNR", "SSIM", "bits per pixel", "codes used", "perplexity")
MOST_BYTES = 2_900_000  # of a page, less its head and captions, which the last 100,000 are for
MOST_PHOTOS = 1_500_000  # of the photos, before base64: more than this shows nothing more
Part = Section | Callable[[int], Section]  # or what makes one of at most so many bytes before base64


@dataclass(frozen=True)
class RunSummary:
    """Everything that the page of a run shows: plain numbers and arrays, so that any trainer can fill it.

    `metrics` has rows with `step`, any of `loss`, `reconstruction`, `codebook`, `commitment` (one chart), and other
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
    name: str = ""  # of the run's directory, which a comparison calls it by


def render(run: RunSummary) -> str:
    """The report of a run as one self-contained HTML document of less than 3 MB."""
    flat = settings(run.config)
    fold = folded(f"Configuration, {len(flat)} settings", key_values({"": flat}, "Configuration"))
    parts: list[Part] = [
        lambda room: comparisons({run.name: run.comparisons}, room),
        curves({run.name: run.metrics}),
        usage({run.name: run.counts}),
        atlas(run.atlas, run.counts),
        Section("All numbers", [key_values({"": run.figures}, "All numbers")]),
        Section("How this was made", [key_values({"": run.provenance}, "How this was made"), fold]),
    ]
    return assemble(run.title, parts, run.subtitle, headline(headlines(run.figures)))


def write_report(path: str | os.PathLike[str], run: RunSummary) -> None:
    """Write the report of a run; OSError where the directory is missing or cannot be written, or the disk is full."""
    write_page(path, render(run))


def assemble(title: str, parts: Sequence[Part], subtitle: str, top: Html) -> str:
    """A page whose photos are made to fit the bytes that the rest leaves, as they can be had at any size."""
    made = [html for part in parts if isinstance(part, Section) for html in part.content]
    used = sum(len(html.encode("utf-8", "replace")) for html in made)
    room = min(MOST_PHOTOS, max(0, MOST_BYTES - used) * 3 // 4)  # base64 makes 4 bytes of 3
    return page(title, [part if isinstance(part, Section) else part(room) for part in parts], subtitle, top)


def write_page(path: str | os.PathLike[str], text: str) -> None:
    """Write a page; one that is already there is replaced in one step, or stays as it is."""
    # Names of files that are no valid UTF-8 arrive as lone surrogates, which no file can hold.
    replace_file(Path(path), text.encode("utf-8", "replace"))


def headlines(figures: Mapping[str, Value]) -> dict[str, Value]:
    """The figures that sum a run up, of those there are."""
    return {name: value for name, value in figures.items() if name.partition(" (")[0] in HEADLINE}


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text under dotted names: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= settings(value, f"{prefix}{name}.") if nested else {prefix + name: str(value)}
    return flat
