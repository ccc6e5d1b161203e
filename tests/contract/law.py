"""What a law is to the suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor

from tests.zoo import Case


def everywhere(case: Case) -> bool:
    return True


@dataclass(frozen=True)
class Law:
    """``check(case)``, named ``law_05_estimator`` or so, raises AssertionError ("law 5: ...") where it is broken."""

    check: Callable[[Case], None]
    applies: Callable[[Case], bool] = everywhere

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def number(self) -> int:
        return int(self.name.split("_")[1])


@dataclass(frozen=True)
class Broken:
    """A quantizer that breaks one law, by name, and the fault in a line as it was found in public code."""

    case: Case
    breaks: str
    found_in: str


def draws(examples: int) -> settings:
    """For property tests inside a law. Without shrinking: a broken quantizer should fail fast, not beautifully."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and _bytes(a) == _bytes(b)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
