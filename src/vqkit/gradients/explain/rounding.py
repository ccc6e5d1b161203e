"""Part 1: rounding, and the estimator that goes straight through it, in the smallest example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.gradients.explain.walked import Step, drawn, name_of, nodes_of, steps_of
from vqkit.gradients.routes import Node

# From y = 2x and z = round(y) to what is summed. The first two are drawn; each of the others lacks one thing.
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z": lambda y, z: z,
    "y + (z - y).detach()": lambda y, z: y + (z - y).detach(),
    "y": lambda y, z: y,
    "y + (z - y)": lambda y, z: y + (z - y),
    "y + z.detach()": lambda y, z: y + z.detach(),
    "z.detach()": lambda y, z: z.detach(),
}
DETACHED = "y + (z - y).detach()"
LEGEND = {"c0": "backward, and the gradient", "red": "past the rounding", "c cut": "cut by detach"}


def rounding(say: Say) -> Part:
    """``x = [1.1, 2.1]``, ``y = 2x``, ``z = round(y)``, ``r`` the sum of z or of what stands for it; both graphs."""
    say("rounding two numbers")
    ways = {code: _measured(code) for code in WAYS}
    facts: dict[str, Any] = {"rounded": ways["z"], "through": ways[DETACHED], "ways": list(ways.values())}
    rows = [
        (w["code"], w["value"], _listed(w["gradient"]) if w["gradient"] else "none: no path") for w in ways.values()
    ]
    table = Table("Six sums and their gradients", ("sum of", "value", "gradient at x"), rows)
    notes = {"Sum": "r", "Add": "y + (z - y)", "Sub": "z - y", "Round": "z = round(y)", "Mul": "y = 2x"}
    rounded, through = (facts[name]["steps"] for name in ("rounded", "through"))
    figures = {
        "rounded": drawn("r = sum(z)", rounded, notes, {"r": "c0"}, {"c0": "backward, and the gradient"}),
        "through": drawn(f"r = sum({DETACHED})", through, notes, {"r": "c0", "skip": "red"}, LEGEND),
    }
    return Part("rounding", "Rounding, and the estimator", facts, {"ways": table}, figures)


def _measured(code: str) -> dict[str, Any]:
    x = torch.tensor([1.1, 2.1], requires_grad=True)
    y = 2 * x
    z = torch.round(y)
    used = WAYS[code](y, z)
    r = used.sum()
    facts: dict[str, Any] = {"code": code, "value": r.item(), "gradient": None, "same": int((used == z).sum())}
    if not r.requires_grad:
        return facts
    passed: dict[tuple[str, str], str] = {}
    hooks = [node.register_hook(_recorder(node, passed)) for node in nodes_of(r)]
    (gradient,) = torch.autograd.grad(r, x)
    for hook in hooks:
        hook.remove()
    difference = z - y  # it has a graph as well; what detach returns is outside of it
    others = [difference] if code == DETACHED else []
    steps = steps_of({"r": r}, others, {"x": nodes_of(x)})
    steps = [step._replace(label=passed.get((step.source, step.target), "")) for step in steps]
    if code == DETACHED:
        steps = [s._replace(losses=("skip",)) if (s.source, s.target) == ("Add", "Mul") else s for s in steps]
        steps.append(Step("Add", "Sub", cut="detach"))
        facts["detached"] = {"requires_grad": difference.detach().requires_grad}
    return facts | {
        "gradient": gradient.tolist(),
        "path": ", ".join([*(name_of(n) for n in nodes_of(r)[:-1]), "x"]),
        "steps": [s._asdict() for s in steps],
    }


def _recorder(node: Node, passed: dict[tuple[str, str], str]) -> Callable[..., None]:
    """A hook that writes down what the node hands on along each of its edges."""

    def record(handed: tuple[Tensor | None, ...], _: object) -> None:
        for (target, _index), gradient in zip(node.next_functions, handed, strict=True):
            if target is not None and gradient is not None:
                end = "x" if name_of(target) == "AccumulateGrad" else name_of(target)
                passed[name_of(node), end] = _listed(gradient.tolist())

    return record


def _listed(values: list[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
