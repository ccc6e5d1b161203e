"""What was measured while training: the losses in one chart, every other number in a chart of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vqkit.pages import Html, Linear, Log, Section, Series, folded, line_chart, table, tag

LOSSES = ("loss", "reconstruction", "codebook", "commitment")
MOST_POINTS = 500  # A line is some 500 pixels wide; more rows than this cost bytes and show nothing.
MOST_ROWS = 25


def curves(metrics: Sequence[Mapping[str, float]]) -> Section:
    """Charts over `step`, and a table of at most 25 rows, the first and the last among them."""
    drawn = _evenly(metrics, MOST_POINTS)
    names = [name for name in dict.fromkeys(key for row in drawn for key in row) if name != "step"]
    losses = [name for name in LOSSES if name in names]
    others = [name for name in names if name not in losses]
    charts = [_chart("Losses", losses, drawn)] if losses else []
    charts += [_chart(name.replace("_", " ").capitalize(), [name], drawn) for name in others]
    columns = ["step", *losses, *others]
    rows = [[row.get(column) for column in columns] for row in _evenly(metrics, MOST_ROWS)]
    numbers = folded(f"The numbers, {len(rows)} of {len(metrics):,} rows", table(columns, rows, "Metrics by step"))
    return Section("Training", [tag("div", {"class": "charts"}, *charts), numbers])


def _evenly(rows: Sequence[Mapping[str, float]], most: int) -> list[Mapping[str, float]]:
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _chart(title: str, names: Sequence[str], metrics: Sequence[Mapping[str, float]]) -> Html:
    series = []
    for name in names:
        rows = [row for row in metrics if name in row]
        series.append(Series(name, [row["step"] for row in rows], [row[name] for row in rows]))
    values = np.concatenate([s.y for s in series])
    values = values[np.isfinite(values)]
    # A loss falls by factors. Where all of it lies within one, or zero occurs, equal steps show more.
    if names[0] in LOSSES and values.size and 0 < 4 * values.min() < values.max():
        return line_chart(series, Log(), title=title, x_label="step", unit="log scale")
    return line_chart(series, Linear(), title=title, x_label="step")
