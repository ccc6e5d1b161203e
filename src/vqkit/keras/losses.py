"""What ``add_loss`` collects, apart for each replica."""

from __future__ import annotations

import threading
from typing import Any


class LossesOfThread(threading.local):
    """A list that every thread sees its own of, in the place where a Keras layer keeps one for all.

    Each replica of a ``MirroredStrategy`` is a thread. One waits in the middle of its forward pass, where statistics
    are summed, while the next runs up to there: in one list the losses of both would meet, and the first replica would
    lose its own when the second clears the list.
    """

    def __init__(self) -> None:
        self._losses: list[Any] = []

    def extend(self, losses: list[Any]) -> None:
        self._losses.extend(losses)

    def clear(self) -> None:
        self._losses.clear()

    def __getitem__(self, part: slice) -> list[Any]:
        return self._losses[part]
