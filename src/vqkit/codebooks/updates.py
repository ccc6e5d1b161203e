"""How a codebook learns: by its gradient, by an exponential moving average, or not at all.

The objects that stand in a quantizer's slots know no framework: where they compute, they are handed its namespace,
``xp`` (``torch``, ``jax.numpy``, ``keras.ops``), so that each rule is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Update(Protocol):
    """An object for the ``update`` slot."""

    by_gradient: ClassVar[bool]  # the codebook is a parameter, and its loss is part of the objective
    needs_sums: ClassVar[bool]  # `step` reads the sums of residuals, so they are collected

    def step(self, codebook: Any, n: Any, counts: Any, sums: Any, xp: Any) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Gradient:
    """The codebook is a parameter and learns from the codebook loss (van den Oord et al. 2017, eq. 3, second term)."""

    by_gradient: ClassVar[bool] = True
    needs_sums: ClassVar[bool] = False

    def step(self, codebook: Any, n: Any, counts: Any, sums: Any, xp: Any) -> tuple[Any, Any]:
        return codebook, n


@dataclass(frozen=True)
class EMA:
    """Exponential moving average, once per optimizer step: ``n' = d n + (1-d) c``, ``e' = e + (1-d)/n' sum(z - e)``.

    The published rule (van den Oord et al. 2017, eq. 6 to 8) in residual form: the state is the codebook (K, D) and n
    (K,), the average number of vectors per step and code. A code that was not chosen keeps its bits, and so does one
    whose sum overflowed. Decay 0 is Lloyd's step.
    """

    by_gradient: ClassVar[bool] = False
    needs_sums: ClassVar[bool] = True
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 and below 1, for example 0.99.")

    def step(self, codebook: Any, n: Any, counts: Any, sums: Any, xp: Any) -> tuple[Any, Any]:
        n = self.decay * n + (1 - self.decay) * counts
        chosen = counts > 0
        rate = xp.where(chosen, (1 - self.decay) / xp.where(chosen, n, 1.0), 0.0)
        moved = codebook + rate[:, None] * sums
        return xp.where((chosen & xp.all(xp.isfinite(moved), -1))[:, None], moved, codebook), n


@dataclass(frozen=True)
class Frozen:
    """The codebook never changes."""

    by_gradient: ClassVar[bool] = False
    needs_sums: ClassVar[bool] = False

    def step(self, codebook: Any, n: Any, counts: Any, sums: Any, xp: Any) -> tuple[Any, Any]:
        return codebook, n
