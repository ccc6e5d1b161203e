"""What was measured while training: the losses in one chart, every other number in a chart of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vqkit.pages import Html, Linear, Log, Section, Series, folded, line_chart, table, tag

LOSSES = ("loss", "reconstruction", "codebook", "commitment")
NAMES = {"psnr": ("PSNR", "dB"), "ssim": ("SSIM", ""), "mse": ("MSE", "")}
MOST_CHARTS = 12
MOST_ROWS = 25


def curves(metrics: Sequence[Mapping[str, float]]) -> Section:
    """Charts over `step`, and a table of at most 25 rows, the first and the last among them."""
    names = [name for name in dict.fromkeys(key for row in metrics for key in row) if name != "step"]
    losses = [name for name in LOSSES if name in names]
    others = [name for name in names if name not in losses][:MOST_CHARTS]
    if not names:
        return Section("Training", [], "This run recorded no metrics.")
    charts = [_chart("Losses" if len(losses) > 1 else "Loss", losses, metrics)] if losses else []
    for name in others:
        title, unit = NAMES.get(name, (name.replace("_", " ").capitalize(), ""))
        charts.append(_chart(title, [name], metrics, unit))
    picked = np.unique(np.linspace(0, len(metrics) - 1, min(MOST_ROWS, len(metrics))).round().astype(int))
    columns = ["step", *losses, *others]
    rows = [[metrics[i].get(column) for column in columns] for i in picked]
    title = f"The numbers, {len(rows)} of {len(metrics):,} rows"
    numbers = folded(title, table(columns, rows, "Metrics by step"))
    return Section("Training", [tag("div", {"class": "charts"}, *charts), numbers])


def _chart(title: str, names: Sequence[str], metrics: Sequence[Mapping[str, float]], unit: str = "") -> Html:
    series = []
    for name in names:
        rows = [row for row in metrics if name in row]
        series.append(Series(name, [row["step"] for row in rows], [row[name] for row in rows]))
    values = np.concatenate([np.asarray(s.y, np.float64) for s in series])
    positive = values[np.isfinite(values) & (values > 0)]
    # A loss falls by factors. Where all of it lies within one, or zero occurs, equal steps show more.
    falls = names[0] in LOSSES and positive.size == np.isfinite(values).sum() > 0
    logarithmic = falls and positive.max() > 4 * positive.min()
    if logarithmic:
        return line_chart(series, Log(), title=title, x_label="step", unit="log scale")
    return line_chart(series, Linear(), title=title, x_label="step", unit=unit)
