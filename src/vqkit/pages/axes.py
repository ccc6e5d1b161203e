"""Axes: where values lie, which ticks a reader expects, how a tick is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Linear:
    """Equal differences are equal distances; ticks are 1, 2, 2.5 or 5 times a power of ten apart."""

    def place(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The values themselves."""
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

    def place(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """log10 of the values, NaN where there is none."""
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
        if math.log10(high / low) > 2.5:
            ladder = ladder[:: 3 * math.ceil(len(decades) / 7)]
        apart = (stop / start) ** 0.06  # closer to an end than this, two labels would overlap
        return [start, *(t for t in ladder if start * apart < t < stop / apart), stop]


Scale = Linear | Log


@dataclass(frozen=True)
class Axis:
    """A scale between two coordinates: `shown` are the values at both ends, `drawn` their coordinates."""

    scale: Scale
    shown: tuple[float, float]
    drawn: tuple[float, float]
    ticks: list[float]

    @staticmethod
    def around(values: Float[np.ndarray, " n"], scale: Scale, start: float, end: float) -> Axis:
        """An axis that ends at the ticks around the data."""
        ticks = scale.ticks(*_range(values, scale))
        return Axis(scale, (ticks[0], ticks[-1]), (start, end), ticks)

    @staticmethod
    def between(values: Float[np.ndarray, " n"], scale: Scale, start: float, end: float) -> Axis:
        """An axis that ends where the data end, as steps or codes do, with the ticks that lie between."""
        low, high = _range(values, scale)
        ticks = [t for t in scale.ticks(low, high) if low <= t <= high]
        return Axis(scale, (low, high), (start, end), ticks or [low])

    def at(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values to coordinates; NaN where the scale has no place for one."""
        low, high = self.scale.place(np.array(self.shown)).tolist()
        start, end = self.drawn
        return np.asarray(start + (self.scale.place(values) - low) / (high - low) * (end - start))


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks written alike: as many decimals as the finest of them needs, but no 1.000 beside 0.001.

    >>> tick_labels([0.0, 2500.0]), tick_labels([-0.25, 0.0, 0.5]), tick_labels([0.01, 0.1, 1.0])
    (['0', '2,500'], ['−0.25', '0.00', '0.50'], ['0.01', '0.1', '1'])
    """
    sizes = [abs(t) for t in ticks if t] or [1.0]
    if max(sizes) >= 1e7 or max(sizes) < 1e-4:
        labels = [f"{t:.12g}" for t in ticks]
    else:
        labels = [f"{t:,.10f}".rstrip("0").rstrip(".") for t in ticks]
        decimals = max(len(label.partition(".")[2]) for label in labels)
        if max(sizes) <= 50 * min(sizes):
            labels = [f"{t:,.{decimals}f}" for t in ticks]
    return [label.replace("-", "\N{MINUS SIGN}") for label in labels]


def _range(values: Float[np.ndarray, " n"], scale: Scale) -> tuple[float, float]:
    """Least and greatest value that the scale has a place for; widened by 5 % where they are one value."""
    shown = values[np.isfinite(scale.place(values))]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.1, 1.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-100):  # or ticks would run out of digits
        widen = 0.05 * abs(low) or 1.0
        return low - widen, high + widen
    return low, high
