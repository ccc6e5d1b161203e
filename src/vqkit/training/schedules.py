"""How the learning rate goes over a run; objects for the ``schedule`` slot."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Rises linearly over ``warmup`` steps and falls to zero along half a cosine over all of the run's steps."""

    warmup: int = 100

    def __post_init__(self) -> None:
        _not_negative(self.warmup)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by in ``step``, counted from 0, of ``steps``."""
        return _rise(step, self.warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Constant:
    """Rises linearly over ``warmup`` steps and stays."""

    warmup: int = 0

    def __post_init__(self) -> None:
        _not_negative(self.warmup)

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by in ``step``, counted from 0, of ``steps``."""
        return _rise(step, self.warmup)


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _not_negative(warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must be a number of steps, 0 or more.")
