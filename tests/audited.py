"""Some checks of an audit, run on a layer, without the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from vqkit.gradients.audit.discover import Conventions, find_out
from vqkit.gradients.audit.report import Audit, Finding, Kept, NotMeasured


def audited(layer: nn.Module | Callable[[], nn.Module], checks: Iterable[Callable], dim: int) -> Audit:
    """The report of these checks alone; a check that raises anything but ``NotMeasured`` fails the test."""
    built, makes = (layer, None) if isinstance(layer, nn.Module) else (layer(), layer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject, conventions = find_out(built, dim, Conventions(), makes)
        found: list[Finding | Kept] = []
        unmeasured = []
        for check in checks:
            try:
                found += check(subject.fresh())
            except NotMeasured as reason:
                unmeasured.append((check.__name__, f"{reason}"))
    findings = tuple(item for item in found if isinstance(item, Finding))
    kept = tuple(item for item in found if isinstance(item, Kept))
    return Audit(type(built).__name__, conventions, findings, kept, tuple(unmeasured))


def number(breaks: str) -> int:
    """Of "law_05_estimator": 5."""
    return int(breaks.split("_")[1])
