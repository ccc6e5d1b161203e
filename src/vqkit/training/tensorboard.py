"""A run in TensorBoard: its scalars, and original images above their reconstructions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.training.metrics import Row, Watcher

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_TAGS = {"loss": "loss/total", "images_per_second": "speed/images_per_second"}
_TAGS |= {name: f"loss/{name}" for name in ("reconstruction", "codebook", "commitment")}
_TAGS |= {name: f"codes/{name}" for name in ("perplexity", "batch_perplexity")}
_MOST_IMAGES = 8


class TensorBoard(Watcher):
    """Writes a run into ``directory`` for ``tensorboard --logdir``; a resumed run replaces the rows that it repeats."""

    def __init__(self, directory: Path) -> None:
        try:  # here, because in begin a run would be half begun
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is not installed: pip install 'vqkit[tensorboard]'.") from error
        self._open = partial(SummaryWriter, directory)
        self._writer: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        self._writer = self._open(purge_step=step + 1)  # TensorBoard drops what it has of this step and later ones

    def row(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self._begun().add_scalar(_TAGS.get(name, name), value, int(row["step"]))
        self._begun().flush()  # 0.4 ms; else a killed run loses up to two minutes

    def images(self, step: int, originals: Tensor, reconstructions: Tensor) -> None:
        """One grid of the first 8: originals (B, C, H, W) in [0, 1] above what came back of them."""
        pairs = torch.stack([originals[:_MOST_IMAGES], reconstructions[:_MOST_IMAGES]]).detach().float().cpu()
        grid = pairs.clamp(0, 1).mul(255).round().byte().permute(2, 0, 3, 1, 4)  # (C, 2, H, B, W)
        self._begun().add_image("images/original_above_reconstruction", grid.flatten(3).flatten(1, 2), step)
        self._begun().flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _begun(self) -> SummaryWriter:
        if self._writer is None:
            raise ValueError("this TensorBoard has not begun: call begin(step) with the last step taken, or 0.")
        return self._writer
