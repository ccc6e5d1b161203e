"""What a trace found, in every framework: how much of each loss reaches which part of a model, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vqkit.gradients.text import aligned

if TYPE_CHECKING:
    from vqkit.gradients.quality import Quality

Kind = Literal["flows", "zero", "no path", "no parameters", "not finite"]
_WIDE = 100  # letters: a wider table is turned, its groups one below the other
_PAIRS = 8  # cosines that are printed, those that oppose each other most; ``cosines`` has them all


class Route(NamedTuple):
    """What a loss gives to a group of tensors: the L2 norm of its gradient, and for a zero which kind of zero it is.

    ``"zero"``: there is a path, and what comes along it is exactly 0. ``"no path"``: nothing connects them.
    ``"no parameters"``: nothing there takes a gradient. ``"not finite"``: NaN or infinity arrives.
    """

    norm: float
    kind: Kind

    def __str__(self) -> str:
        return {"flows": f"{self.norm:.4g}", "zero": "0 on a path"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Trace:
    """``routes[loss][group]``, ``cosines[group][loss, loss]`` where both flow, and the straight-through quality."""

    routes: dict[str, dict[str, Route]]
    cosines: dict[str, dict[tuple[str, str], float]]
    straight_through: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        def entry(route: Route) -> dict[str, Any]:  # NaN is no JSON
            return {"norm": route.norm if math.isfinite(route.norm) else None, "kind": route.kind}

        return {
            "routes": {loss: {g: entry(r) for g, r in row.items()} for loss, row in self.routes.items()},
            "cosines": {g: {" / ".join(pair): c for pair, c in row.items()} for g, row in self.cosines.items()},
            "straight_through": self.straight_through and self.straight_through._asdict(),
        }

    def __str__(self) -> str:
        rows = [["gradient norm", *next(iter(self.routes.values()))]]
        rows += [[loss, *map(str, row.values())] for loss, row in self.routes.items()]
        text = aligned(rows)
        if max(map(len, text.splitlines())) > _WIDE:
            text = aligned(list(zip(*rows, strict=True)))
        pairs = [(c, group, *pair) for group, row in self.cosines.items() for pair, c in row.items()]
        lines = [f"cosine at {group}: {a} and {b} {c:+.3f}" for c, group, a, b in sorted(pairs)[:_PAIRS]]
        if len(pairs) > _PAIRS:
            lines.append(f"and {len(pairs) - _PAIRS} more, all greater: see .cosines")
        if self.straight_through is not None:
            value, changes = self.straight_through
            said = "undefined" if value is None else f"{value:.3f} with the measured change"
            lines.append(f"straight-through: correlation {said}, {changes} changes of code")
        return "\n".join([text, *lines])
