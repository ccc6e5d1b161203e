"""What was measured while training, of one run or of several in the same charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vqkit.pages import Html, Linear, Log, Section, Series, folded, line_chart, table, tag

LOSSES = ("loss", "reconstruction", "codebook", "commitment")
TOGETHER = {**dict.fromkeys(LOSSES, "losses"), "batch_perplexity": "perplexity"}  # charts of a run on its own
MOST_POINTS = 500  # A line is some 500 pixels wide; more rows than this cost bytes and show nothing.
MOST_ROWS = 25


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Section:
    """Charts over `step`, and of each run a table of at most 25 rows, the first and the last among them.

    One run has its losses in one chart and its perplexities in one; of several, every quantity has a chart of its own.
    """
    several = len(runs) > 1
    found = dict.fromkeys(name for rows in runs.values() for row in rows for name in row if name != "step")
    names = [*(name for name in LOSSES if name in found), *(name for name in found if name not in LOSSES)]
    charts: dict[str, list[Series]] = {}
    for name in names:
        for run, rows in runs.items():
            points = [row for row in _evenly(rows, MOST_POINTS) if name in row]
            x, y = [row["step"] for row in points], [row[name] for row in points]
            line = Series(run if several else name.replace("_", " "), x, y, "" if points else "not measured")
            charts.setdefault(name if several else TOGETHER.get(name, name), []).append(line)
    numbers = []
    for run, rows in runs.items():
        listed = [[row.get(name) for name in ("step", *names)] for row in _evenly(rows, MOST_ROWS)]
        title = f"The numbers{f' of {run}' * several}, {len(listed)} of {len(rows):,} rows"
        numbers.append(folded(title, table(["step", *names], listed, "Metrics by step")))
    figures = (_chart(title, series) for title, series in charts.items())
    return Section("Training", [tag("div", {"class": "charts"}, *figures), *numbers])


def _evenly(rows: Sequence[Mapping[str, float]], most: int) -> list[Mapping[str, float]]:
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _chart(title: str, series: Sequence[Series]) -> Html:
    values = np.concatenate([s.y for s in series])
    values = values[np.isfinite(values)]
    # A loss falls by factors. Where all of it lies within one, or zero occurs, equal steps show more.
    falls = title in ("losses", *LOSSES) and values.size and 0 < 4 * values.min() < values.max()
    scale, unit = (Log(), "log scale") if falls else (Linear(), "")
    return line_chart(series, scale, title=title.replace("_", " ").capitalize(), x_label="step", unit=unit)
