"""How a run shows itself while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Shows rows of metrics; ``row`` is called every few steps."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def row(self, row: Mapping[str, float]) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def row(self, row: Mapping[str, float]) -> None:
        pass


class Bar:
    """A bar that redraws itself, for a terminal."""

    def __init__(self, steps: int) -> None:
        self._bar = RichProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._task = self._bar.add_task("step", total=steps, figures="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def row(self, row: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=int(row["step"]), figures=_figures(row))


class Lines:
    """A line now and then, for a log: at least ``seconds`` apart, and the last step."""

    def __init__(self, steps: int, seconds: float = 5.0) -> None:
        self._steps, self._seconds = steps, seconds
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def row(self, row: Mapping[str, float]) -> None:
        now, step = time.monotonic(), int(row["step"])
        if now - self._last >= self._seconds or step == self._steps:
            left = (now - self._began) / step * (self._steps - step)
            print(f"step {step}/{self._steps}  {_figures(row)}  {left:.0f} s left", flush=True)
            self._last = now


def _figures(row: Mapping[str, float]) -> str:
    return f"loss {row['loss']:.4f}  perplexity {row['perplexity']:.0f}  {row['images_per_second']:.0f} images/s"


def progress_for(steps: int) -> Progress:
    """A bar where the output is a terminal, lines elsewhere."""
    return Bar(steps) if sys.stdout.isatty() else Lines(steps)
