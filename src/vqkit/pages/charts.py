"""Charts as inline SVG: lines over a quantity, and bars over a long row of items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vqkit.pages.document import Html, tag
from vqkit.pages.tables import number

# One drawing size for every chart, in SVG units: at the page's usual widths a unit is 0.85 to 1.25 pixels,
# so the labels stay legible from a telephone to a wide screen.
WIDTH, HEIGHT = 400, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 392, 10, 176
MOST_BARS = 8192


@dataclass(frozen=True)
class Linear:
    """Equal differences are equal distances; ticks are 1, 2, 2.5 or 5 times a power of ten apart."""

    def place(self, values: np.ndarray) -> np.ndarray:
        return values

    def ticks(self, low: float, high: float) -> list[float]:
        """About five steps, from the tick at or below `low` to the one at or above `high`.

        >>> Linear().ticks(0.0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        power = 10.0 ** math.floor(math.log10((high - low) / 5))
        step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if high - low <= 5 * m * power)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return [float(f"{i * step:.15g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """Equal ratios are equal distances; zero and below have no place. Ticks are 1, 2, 5, 10, 20, ..."""

    def place(self, values: np.ndarray) -> np.ndarray:
        return np.log10(np.where(values > 1e-100, values, np.nan))  # digits of a double end at 1e-308

    def ticks(self, low: float, high: float) -> list[float]:
        """The two ticks around [low, high] and those between; over many decades only powers of ten between.

        >>> Log().ticks(0.04, 3.0), Log().ticks(0.0006, 0.45)
        ([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0], [0.0005, 0.001, 0.01, 0.1, 0.5])
        """
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ladder = [float(f"{m}e{k}") for k in decades for m in (1, 2, 5)]
        start = max(t for t in ladder if t <= low * (1 + 1e-9))
        stop = min(t for t in ladder if t >= high * (1 - 1e-9))
        inner = ladder[:: 3 * math.ceil(len(decades) / 7)] if high > 300 * low else ladder
        apart = (stop / start) ** 0.08  # closer to an end than this, two labels would overlap
        return [start, *(t for t in inner if start * apart < t < stop / apart), stop]


Scale = Linear | Log


class Series(NamedTuple):
    """A named line through the points (x, y); x ascending. NaN and infinite y are gaps in the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Series], y_scale: Scale, *, title: str, x_label: str, unit: str = "") -> Html:
    """A figure of one to four lines, with a legend that gives the last finite value of each.

    A point on its own, between gaps or in a run of one row, is a dot.
    """
    xs, ys = [np.asarray(s.x, np.float64) for s in series], [np.asarray(s.y, np.float64) for s in series]
    # Beyond 1e100 the arithmetic of ticks overflows; such a value is as much a gap as infinity is.
    ys = [np.where(np.abs(y) < 1e100, y, np.nan) for y in ys]
    plot = _Plot(np.concatenate(xs), np.concatenate(ys), y_scale)
    drawn, legend = [], []
    for i, (s, x, y) in enumerate(zip(series, xs, ys, strict=True)):
        drawn += _line(plot.x(x), plot.y(y), f"c{i}")
        last = [number(float(v)) for v in y[np.isfinite(plot.y(y))][-1:]] or ["no finite value"]
        legend.append((f"c{i}", s.name, last[0]) if len(series) > 1 else ("", "last", last[0]))
    return plot.figure(title, unit, x_label, legend, drawn)


def bar_chart(
    heights: np.ndarray, level: tuple[str, float], y_scale: Scale, *, title: str, x_label: str, unit: str = ""
) -> Html:
    """A figure of n touching bars from 0 up, readable for one and for thousands, and a dashed line (name, height).

    The bars are one path. Beyond 8192 of them each is the greatest of a group of neighbours.
    """
    count = len(heights)
    starts = np.arange(0, count, -(-count // MOST_BARS))
    tops = np.maximum.reduceat(heights.astype(np.float64), starts)
    # Bars stand on zero; where the scale has none, the least of them still has half its size to stand on.
    least = tops[tops > 0].min(initial=level[1])
    plot = _Plot(np.array([0.0, count]), np.array([0.0, least / 2, level[1], tops.max()]), y_scale)
    *at, line = np.nan_to_num(plot.y(np.append(tops, level[1])), nan=BOTTOM)
    edges = plot.x(np.append(starts[1:], count))
    steps = "".join(f"V{y:.1f}H{x:.2f}" for x, y in zip(edges, at, strict=True))
    drawn = [
        tag("path", {"class": "bars", "d": f"M{LEFT} {BOTTOM}{steps}V{BOTTOM}Z"}),
        tag("path", {"class": "level", "d": f"M{LEFT} {line:.1f}H{RIGHT}"}),
    ]
    return plot.figure(title, unit, x_label, [("level", level[0], number(level[1]))], drawn)


class _Plot:
    """The frame of a chart: x ends where the data end, as steps or codes do, y at the ticks around the data."""

    def __init__(self, x: np.ndarray, y: np.ndarray, y_scale: Scale) -> None:
        low, high = self.x_range = _range(x, Linear())
        self.x_ticks = [t for t in Linear().ticks(low, high) if low <= t <= high]
        self.y_ticks = y_scale.ticks(*_range(y, y_scale))
        self.y_scale = y_scale

    def x(self, values: np.ndarray) -> np.ndarray:
        return np.interp(values, self.x_range, (LEFT, RIGHT))

    def y(self, values: np.ndarray) -> np.ndarray:
        ends = self.y_scale.place(np.array([self.y_ticks[0], self.y_ticks[-1]]))
        return np.interp(self.y_scale.place(values), ends, (BOTTOM, TOP))  # NaN stays NaN

    def figure(
        self, title: str, unit: str, x_label: str, legend: Sequence[tuple[str, str, str]], drawn: Sequence[Html]
    ) -> Html:
        """What was drawn, between its axes; a legend's entry is (style of its key, name, value)."""
        rows, columns = self.y(np.array(self.y_ticks)), self.x(np.array(self.x_ticks))
        words = f"{title} by {x_label}: " + ", ".join(f"{name} {value}" for _, name, value in legend)
        svg = tag(
            "svg",
            {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": words},
            tag("path", {"class": "grid", "d": "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in rows)}),
            tag("path", {"class": "base", "d": f"M{LEFT} {BOTTOM}H{RIGHT}"}),
            *drawn,
            *(_label("y", LEFT - 7, y + 3.5, text) for y, text in zip(rows, _written(self.y_ticks), strict=True)),
            *(_label("x", x, BOTTOM + 15, text) for x, text in zip(columns, _written(self.x_ticks), strict=True)),
            _label("name", (LEFT + RIGHT) / 2, BOTTOM + 31, x_label),
        )
        entries = []
        for style, name, value in legend:
            key = tag("i", {"class": f"key {style}"}) if style else ""
            entries.append(tag("span", None, key, f"{name} ", tag("b", None, value)))
        head = tag("strong", None, title, tag("span", {"class": "unit"}, f" {unit}"))
        caption = tag("figcaption", None, head, tag("span", {"class": "legend"}, *entries))
        return tag("figure", {"class": "chart"}, caption, svg)


def _label(kind: str, x: float, y: float, text: str) -> Html:
    return tag("text", {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}"}, text)


def _line(x: np.ndarray, y: np.ndarray, colour: str) -> list[Html]:
    """A path for the stretches between gaps, and one for lone points: strokes of no length, which a round cap shows."""
    finite = np.isfinite(y)
    cuts = np.flatnonzero(np.diff(finite)) + 1
    runs = [[f"{x[i]:.1f} {y[i]:.1f}" for i in run if finite[i]] for run in np.split(np.arange(len(y)), cuts)]
    line = "".join("M" + "L".join(run) for run in runs if len(run) > 1)
    dots = "".join(f"M{run[0]}h0" for run in runs if len(run) == 1)
    return [tag("path", {"class": f"{kind} {colour}", "d": d}) for kind, d in (("line", line), ("dots", dots))]


def _written(ticks: list[float]) -> list[str]:
    """Ticks written alike: as many decimals as the finest of them needs, but no 1.000 beside 0.001.

    >>> _written([0.0, 2500.0]), _written([-0.25, 0.0, 0.5]), _written([0.01, 0.1, 1.0])
    (['0', '2,500'], ['−0.25', '0.00', '0.50'], ['0.01', '0.1', '1'])
    """
    sizes = [abs(t) for t in ticks if t]
    labels = [f"{t:,.12g}" for t in ticks]
    if max(sizes) <= 50 * min(sizes) and "e" not in "".join(labels):
        decimals = max(len(label.partition(".")[2]) for label in labels)
        labels = [f"{t:,.{decimals}f}" for t in ticks]
    return [label.replace("-", "\N{MINUS SIGN}") for label in labels]


def _range(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """Least and greatest value that the scale has a place for; widened by 5 % where they are one value."""
    shown = values[np.isfinite(scale.place(values))]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.1, 1.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-100):  # or ticks would run out of digits
        widen = 0.05 * abs(low) if abs(low) > 1e-100 else 1.0
        return low - widen, high + widen
    return low, high
