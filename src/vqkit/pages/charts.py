"""Charts as inline SVG: lines over a quantity, and bars over a long row of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vqkit.pages.axes import Axis, Linear, Scale, tick_labels
from vqkit.pages.markup import Html, join, tag
from vqkit.pages.tables import number

if TYPE_CHECKING:
    from jaxtyping import Float, Num

# One drawing size for every chart, in SVG units: at the page's usual widths a unit is 0.85 to 1.25 pixels,
# so the labels stay legible from a telephone to a wide screen.
WIDTH, HEIGHT = 400, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 392, 10, 176
MOST_POINTS = 500  # A line is 346 units wide; more points than this cost bytes and show nothing.
MOST_BARS = 8192
COLOURS = 5  # The style sheet names colours --line-0 to --line-4.


@dataclass(frozen=True)
class Series:
    """A named line through the points (x, y); x ascending. NaN and infinite y are gaps in the line."""

    name: str
    x: Sequence[float] | Float[np.ndarray, " n"]
    y: Sequence[float] | Float[np.ndarray, " n"]


def line_chart(series: Sequence[Series], y_scale: Scale, *, title: str, x_label: str, unit: str = "") -> Html:
    """A figure of one to five lines, with a legend that gives the last finite value of each.

    A point on its own, between gaps or in a run of one row, is a dot. A line of more than 500 points is
    thinned to the least and greatest of each stretch, so no peak is lost.

    Raises:
        ValueError: no series or more than five; x and y of different lengths.
    """
    if not 1 <= len(series) <= COLOURS:
        raise ValueError(f"series must be 1 to {COLOURS} lines, got {len(series)}: draw several charts")
    names = [s.name for s in series]
    xs, ys = [np.asarray(s.x, np.float64) for s in series], [np.asarray(s.y, np.float64) for s in series]
    for name, x, y in zip(names, xs, ys, strict=True):
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"series {name!r}: x and y must be equally long rows: {x.shape} and {y.shape}")
    # Beyond 1e100 the arithmetic of ticks overflows; such a value is as much a gap as infinity is.
    ys = [np.where(np.abs(y) < 1e100, y, np.nan) for y in ys]
    across = Axis.between(np.concatenate(xs), Linear(), LEFT, RIGHT)
    up = Axis.around(np.concatenate(ys), y_scale, BOTTOM, TOP)

    drawn, legend, spoken = [], [], []
    for i, (name, x, y) in enumerate(zip(names, xs, ys, strict=True)):
        keep = _thin(y)
        drawn.append(_line(across.at(x[keep]), up.at(y[keep]), f"c{i}"))
        finite = [number(float(v)) for v in y[np.isfinite(up.at(y))][-1:]] or ["no finite value"]
        key = join(tag("i", {"class": f"key c{i}"}), f"{name} ") if len(series) > 1 else "last "
        legend.append(tag("span", None, key, tag("b", None, finite[0])))
        spoken.append(f"{name}: last {finite[0]}")
    words = f"{title} by {x_label}; " + ", ".join(spoken)
    return _figure(title, unit, join(*legend), words, x_label, across, up, join(*drawn))


def bar_chart(
    heights: Num[np.ndarray, " n"],
    level: tuple[str, float],
    y_scale: Scale,
    *,
    title: str,
    x_label: str,
    unit: str = "",
) -> Html:
    """A figure of n touching bars, readable for one and for thousands, and a dashed line (name, height).

    The bars are one path. Beyond 8192 of them each is the greatest of a group of neighbours.

    Raises:
        ValueError: heights are no row, empty, negative or not finite.
    """
    heights = np.asarray(heights, np.float64)
    if heights.ndim != 1 or not heights.size or not np.all(np.isfinite(heights) & (heights >= 0)):
        raise ValueError(f"heights must be a row of finite numbers from 0 up, got shape {heights.shape}")
    count = len(heights)
    starts = np.unique(np.linspace(0, count, min(count, MOST_BARS), endpoint=False).astype(int))
    tops = np.maximum.reduceat(heights, starts)
    # Bars stand on zero; where the scale has none, the least of them still has half its size to stand on.
    least = tops[tops > 0].min(initial=level[1])
    up = Axis.around(np.array([0.0, least / 2, level[1], tops.max()]), y_scale, BOTTOM, TOP)
    across = Axis.between(np.array([0.0, count]), Linear(), LEFT, RIGHT)
    edges = across.at(np.append(starts, count))
    at = np.nan_to_num(up.at(np.append(tops, level[1])), nan=BOTTOM).round(1)
    first = np.flatnonzero(np.diff(at[:-1], prepend=np.nan) != 0)  # of each stretch of equal bars
    last = np.append(first[1:], len(tops))
    steps = "".join(f"V{at[i]:.1f}H{edges[j]:.2f}" for i, j in zip(first, last, strict=True))
    bars = tag("path", {"class": "bars", "d": f"M{LEFT} {BOTTOM}{steps}V{BOTTOM}Z"})
    line = tag("path", {"class": "level", "d": f"M{LEFT} {at[-1]:.1f}H{RIGHT}"})
    key = tag("i", {"class": "key level"})
    legend = tag("span", None, key, f"{level[0]} ", tag("b", None, number(level[1])))
    words = f"{title}: {count} bars by {x_label}, the highest {number(float(heights.max()))} {unit}"
    return _figure(title, unit, legend, words, x_label, across, up, join(bars, line))


def _thin(y: Float[np.ndarray, " n"]) -> np.ndarray:
    """Indices to draw: of each stretch the least, the greatest and the first gap; all of a short line."""
    if len(y) <= MOST_POINTS:
        return np.arange(len(y))
    keep = {0, len(y) - 1}
    for stretch in np.array_split(np.arange(len(y)), MOST_POINTS // 2):
        gap = np.isnan(y[stretch])
        keep.update(stretch[gap][:1].tolist())
        if not gap.all():
            keep.update((int(stretch[np.nanargmin(y[stretch])]), int(stretch[np.nanargmax(y[stretch])])))
    return np.array(sorted(keep))


def _line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], colour: str) -> Html:
    cuts = np.flatnonzero(np.diff(np.isfinite(y))) + 1
    runs = [run for run in np.split(np.arange(len(y)), cuts) if np.isfinite(y[run]).all()]
    points = [[f"{x[i]:.1f} {y[i]:.1f}" for i in run] for run in runs]
    line = "".join("M" + "L".join(run) for run in points if len(run) > 1)
    # A point on its own is a stroke of no length, which a round cap shows as a dot.
    dots = "".join(f"M{run[0]}h0" for run in points if len(run) == 1)
    paths = {"line": line, "dots": dots}
    return join(*(tag("path", {"class": f"{kind} {colour}", "d": d}) for kind, d in paths.items()))


def _figure(title: str, unit: str, legend: Html, words: str, x_label: str, across: Axis, up: Axis, drawn: Html) -> Html:
    rows, columns = up.at(np.array(up.ticks)), across.at(np.array(across.ticks))
    labels = [
        tag("text", {"class": "y", "x": LEFT - 7, "y": f"{y + 3.5:.1f}"}, label)
        for y, label in zip(rows, tick_labels(up.ticks), strict=True)
    ] + [
        tag("text", {"class": "x", "x": f"{x:.1f}", "y": BOTTOM + 15}, label)
        for x, label in zip(columns, tick_labels(across.ticks), strict=True)
    ]
    svg = tag(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": words},
        tag("path", {"class": "grid", "d": "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in rows)}),
        tag("path", {"class": "base", "d": f"M{LEFT} {BOTTOM}H{RIGHT}"}),
        drawn,
        *labels,
        tag("text", {"class": "name", "x": (LEFT + RIGHT) / 2, "y": BOTTOM + 31}, x_label),
    )
    head = tag("strong", None, title, tag("span", {"class": "unit"}, f" {unit}"))
    caption = tag("figcaption", None, head, tag("span", {"class": "legend"}, legend))
    return tag("figure", {"class": "chart"}, caption, svg)
