"""Charts as inline SVG: lines over a quantity."""

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
    """A named line through the points (x, y); x ascending. NaN and infinite y are gaps in the line.

    Where `low` and `high` are given, as long as y, the band between them is shaded.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    note: str = ""  # in the legend; without one, the last finite value
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(series: Sequence[Series], y_scale: Scale, *, title: str, x_label: str, unit: str = "") -> Html:
    """A figure of one to four lines, with a legend that gives the note of each or its last finite value.

    A point on its own, between gaps or in a run of one row, is a dot.
    """
    xs, ys = [np.asarray(s.x, np.float64) for s in series], [np.asarray(s.y, np.float64) for s in series]
    # Beyond 1e100 the arithmetic of ticks overflows; such a value is as much a gap as infinity is.
    ys = [np.where(np.abs(y) < 1e100, y, np.nan) for y in ys]
    x_range = _range(np.concatenate(xs), Linear())  # x ends where the data end, as steps or codes do, y at ticks
    x_ticks = [t for t in Linear().ticks(*x_range) if x_range[0] <= t <= x_range[1]]
    bands = [np.array([(), ()] if not len(s.low) else [s.low, s.high], np.float64) for s in series]
    y_ticks = y_scale.ticks(*_range(np.concatenate([*ys, *(band.ravel() for band in bands)]), y_scale))
    y_range = y_scale.place(np.array([y_ticks[0], y_ticks[-1]]))

    def across(x: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.interp(np.asarray(x), x_range, (LEFT, RIGHT))

    def up(y: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.interp(y_scale.place(np.asarray(y)), y_range, (BOTTOM, TOP))  # NaN stays NaN

    drawn: list[Html] = []
    legend, words = [], []
    for i, (s, x, y) in enumerate(zip(series, xs, ys, strict=True)):
        drawn = _band(across(x), up(bands[i]), f"c{i}") + drawn + _line(across(x), up(y), f"c{i}")
        last = [number(float(v)) for v in y[np.isfinite(up(y))][-1:]] or ["no finite value"]
        key, name = (tag("i", {"class": f"key c{i}"}), s.name) if len(series) > 1 else ("", "last")
        legend.append(tag("span", None, key, f"{name} ", tag("b", None, s.note or last[0])))
        words.append(f"{name} {s.note or last[0]}")
    svg = tag(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": f"{title} by {x_label}: {', '.join(words)}"},
        tag("path", {"class": "grid", "d": "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in up(y_ticks))}),
        tag("path", {"class": "base", "d": f"M{LEFT} {BOTTOM}H{RIGHT}"}),
        *drawn,
        *(_label("y", LEFT - 7, y + 3.5, text) for y, text in zip(up(y_ticks), _written(y_ticks), strict=True)),
        *(_label("x", x, BOTTOM + 15, text) for x, text in zip(across(x_ticks), _written(x_ticks), strict=True)),
        _label("name", (LEFT + RIGHT) / 2, BOTTOM + 31, x_label),
    )
    head = tag("strong", None, title, tag("span", {"class": "unit"}, f" {unit}"))
    caption = tag("figcaption", None, head, tag("span", {"class": "legend"}, *legend))
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


def _band(x: np.ndarray, edges: np.ndarray, colour: str) -> list[Html]:
    """The shaded stretch between two edges (2, n), under every line; where either is a gap, it is passed over."""
    finite = np.flatnonzero(np.isfinite(edges).all(0))
    around = [(i, edges[0, i]) for i in finite] + [(i, edges[1, i]) for i in finite[::-1]]
    d = "M" + "L".join(f"{x[i]:.1f} {y:.1f}" for i, y in around) + "Z"
    # Its own style, because no other path of a chart is filled.
    style = "fill:currentColor;fill-opacity:.15"
    return [tag("path", {"class": f"band {colour}", "d": d, "style": style})] if len(finite) else []


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
