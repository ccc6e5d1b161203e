"""How a run shows itself while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from vqkit.training.config import Config
from vqkit.training.metrics import Watcher


class Bar(Watcher):
    """A bar that redraws itself, for a terminal."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar = RichProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )

    def begin(self, step: int) -> None:
        _say(step)
        self._task = self._bar.add_task("step", total=self._steps, completed=step, figures="")
        self._bar.start()

    def row(self, row: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=int(row["step"]), figures=_figures(row))

    def close(self) -> None:
        self._bar.stop()


class Lines(Watcher):
    """A line now and then, for a log: at least ``seconds`` apart, and the last step."""

    def __init__(self, steps: int, batch: int, seconds: float = 5.0) -> None:
        self._steps, self._batch, self._seconds = steps, batch, seconds
        self._last = time.monotonic()

    def begin(self, step: int) -> None:
        _say(step)

    def row(self, row: Mapping[str, float]) -> None:
        now, step = time.monotonic(), int(row["step"])
        if now - self._last >= self._seconds or step == self._steps:
            left = (self._steps - step) * self._batch / row["images_per_second"]
            print(f"step {step}/{self._steps}  {_figures(row)}  {left:.0f} s left", flush=True)
            self._last = now


def _say(step: int) -> None:
    if step:
        print(f"going on after step {step}", flush=True)


def _figures(row: Mapping[str, float]) -> str:
    return f"loss {row['loss']:.4f}  perplexity {row['perplexity']:.0f}  {row['images_per_second']:.0f} images/s"


def progress_for(config: Config) -> Watcher:
    """A bar where the output is a terminal, lines elsewhere."""
    return Bar(config.steps) if sys.stdout.isatty() else Lines(config.steps, config.batch)
