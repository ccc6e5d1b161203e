"""What is measured of each step, and the file that keeps it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from vqkit.functional.statistics import count_codes, perplexity
from vqkit.models.storage import replace_file

Row = dict[str, float]
_LOSSES = ("loss", "reconstruction", "codebook", "commitment")


class Diverged(RuntimeError):
    """The loss is no longer a number."""


class Watcher:
    """Hears of a run: a progress bar, a file, TensorBoard. What a watcher has no use for, it leaves as it is here."""

    def begin(self, step: int) -> None:
        """The run begins after ``step``: after 0, or after that of the checkpoint it goes on from."""

    def row(self, row: Row) -> None:
        """The means since the last row."""

    def images(self, step: int, originals: Tensor, reconstructions: Tensor) -> None:
        """A batch of images (B, C, H, W) in [0, 1]."""

    def close(self) -> None:
        """The run has ended, well or not."""


class Window:
    """The steps since the last row."""

    def __init__(self, codebook_size: int) -> None:
        self._counts = torch.zeros(codebook_size, dtype=torch.int64)
        self._sums = torch.zeros(len(_LOSSES), dtype=torch.float64)
        self._steps, self._images, self._perplexities = 0, 0, 0.0
        self._began = time.monotonic()

    def add(self, step: int, losses: Tensor, indices: Tensor, images: int) -> None:
        """One step: its four losses and its codes.

        Raises:
            Diverged: a loss is not finite.
        """
        losses = losses.cpu().double()  # in this order: Apple's GPUs have no float64
        if not bool(torch.isfinite(losses).all()):
            raise Diverged(f"step {step}: the loss is no longer finite")
        counts = count_codes(indices.cpu(), len(self._counts))
        self._sums += losses
        self._counts += counts
        self._perplexities += perplexity(counts)
        self._steps, self._images = self._steps + 1, self._images + images

    def row(self, step: int, learning_rate: float) -> Row:
        """The means; ``perplexity`` is of all codes together, ``batch_perplexity`` the mean of the batches' own."""
        means = (self._sums / self._steps).tolist()
        return {
            "step": step,
            **dict(zip(_LOSSES, means, strict=True)),
            "perplexity": perplexity(self._counts),
            "batch_perplexity": self._perplexities / self._steps,
            "learning_rate": learning_rate,
            "images_per_second": self._images / (time.monotonic() - self._began),
        }


class MetricsFile(Watcher):
    """``metrics.jsonl``: a row of metrics on each line, those of the steps that a resumed run repeats dropped."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"

    def begin(self, step: int) -> None:
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        replace_file(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def row(self, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``; a line that was cut off, by a crash or a full disk, is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.keys() >= {"step", "images_per_second"}:
            rows.append(row)
    return rows
