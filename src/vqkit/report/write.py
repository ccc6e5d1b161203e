"""A run as one page: put the sections in order, write the file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqkit.pages import Section, folded, headline, key_values, page
from vqkit.report.atlas import atlas
from vqkit.report.comparisons import comparisons
from vqkit.report.curves import curves
from vqkit.report.summary import RunSummary
from vqkit.report.usage import usage

MOST_BYTES = 2_900_000  # of a page, less its head and captions, which the last 100,000 are for
MOST_PHOTOS = 1_500_000  # of the photos, before base64: more than this shows nothing more
MOST_TEXT = 400  # A longer setting is cut, so that no configuration makes the page large,
MOST_SETTINGS = 500  # and so are more settings than anybody reads.


def render(run: RunSummary) -> str:
    """The report of a run as one self-contained HTML document of less than 3 MB."""
    names = {name.partition(" (")[0]: name for name in run.figures}
    top = {names[name]: run.figures[names[name]] for name in run.headline if name in names}
    settings = _flat(run.config)
    fold = folded(f"Configuration, {len(settings)} settings", key_values(settings, "Configuration"))
    others = [
        curves(run.metrics),
        usage(run.counts),
        atlas(run.atlas, run.counts),
        Section("All numbers", [key_values(run.figures, "All numbers")] if run.figures else []),
        Section("How this was made", [key_values(run.provenance, "How this was made"), fold]),
    ]
    # The photos get what the rest leaves, as they can be had at any size; base64 makes 4 bytes of 3.
    used = sum(len(part.encode("utf-8", "replace")) for section in others for part in section.content)
    photos = comparisons(run.comparisons, min(MOST_PHOTOS, max(0, MOST_BYTES - used) * 3 // 4))
    return page(run.title, [s for s in (photos, *others) if s.content or s.lead], run.subtitle, headline(top))


def write_report(path: str | os.PathLike[str], run: RunSummary) -> None:
    """Write the report of a run; a page that is already there is replaced in one step, or stays as it is.

    Raises:
        OSError: the directory is missing or cannot be written.
    """
    path = Path(path)
    # Names of files that are no valid UTF-8 arrive as lone surrogates, which no file can hold.
    data = render(run).encode("utf-8", "replace")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text under dotted names: {"a": {"b": 1}} is {"a.b": "1"}."""
    settings: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            settings.update(_flat(value, f"{prefix}{name}."))
        else:
            text = str(value)
            settings[f"{prefix}{name}"] = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"
    return dict(list(settings.items())[:MOST_SETTINGS])
