"""Vector quantization in two dimensions: what moves each point and each code, as a picture that can be changed.

In the page ``plane.js`` computes; here the same arithmetic, by ``reference.py``, measures what the text says.
``plane.svg`` is the drawing before the first step, for those who run no scripts; the script changes its paths. Made by
``python -m tests.plane_page``.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np

from vqkit import reference
from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.pages import Html, Value, tag

_HERE = resources.files("vqkit.gradients.explain")
SCRIPT, STYLE, DRAWING = (_HERE.joinpath(f"plane.{kind}").read_text("utf-8") for kind in ("js", "css", "svg"))
State = dict[str, Any]  # plain JSON: points, targets, codes, n, beta, estimator, update, lr, decay
VARIANTS: dict[str, State] = {
    "as_it_starts": {},
    "beta_1": {"beta": 1.0},
    "beta_0": {"beta": 0.0},
    "EMA": {"update": "EMA"},
    "frozen": {"update": "frozen"},
    "frozen_beta_0": {"update": "frozen", "beta": 0.0},
    "no_estimator": {"estimator": "none"},
    "rotation_trick": {"estimator": "rotation trick"},
}
STEPS = 200


def plane(say: Say) -> Part:
    """Ten points, their targets and five codes: what moves them in the first step, and where 200 steps lead."""
    state = first_state()
    first, steps, _ = moment(state)
    say(f"{len(VARIANTS)} variants in the plane, {STEPS} steps each")
    ends = {name: _run({**state, **change}) for name, change in VARIANTS.items()}
    pulls = {name: steps[name] for name in ("reconstruction", "commitment")}
    outcomes: list[list[Value]] = [[name.replace("_", " "), *end.values()] for name, end in ends.items()]
    columns = ["variant", "reconstruction loss", "perplexity", "z to its code", "changes of code", "farthest z"]
    ends_title = f"Steps {STEPS // 2 + 1} to {STEPS}, on average; the farthest z at the end"
    unit = {
        name: step / np.linalg.norm(step, axis=1, keepdims=True) for name, step in steps.items() if name != "codebook"
    }
    along = {name: (unit[name] * unit["to_code"]).sum(1).tolist() for name in pulls}
    cosines = {name: {"least": min(c), "most": max(c)} for name, c in along.items()}
    facts = {"state": state, "first": first, "cosines": cosines, "steps": STEPS, "ends": ends}
    data = json.dumps(state).replace("</", "<\\/")  # that would end the element
    stage = Html(DRAWING + tag("script", {"type": "application/json"}, Html(data)))
    return Part("plane", "In the plane", facts, {"ends": Table(ends_title, columns, outcomes)}, {"stage": stage})


def first_state() -> State:
    """Three groups of targets, points and codes anywhere near: drawn, then rounded to 0.01.

    The seed is one of 2,000,000 tried: no two marks overlap, one code has no point, arrows point in all directions and
    end inside the picture and under no mark, and with frozen codes and beta = 0 all points stay inside for ten steps.
    """
    draw = np.random.default_rng(710852).normal
    targets = np.array([[-0.75, 0.6], [0.8, 0.55], [0.1, -0.8]])[np.arange(10) % 3] + 0.2 * draw(size=(10, 2))
    places = {"targets": targets, "points": targets + 0.5 * draw(size=(10, 2)), "codes": 0.6 * draw(size=(5, 2))}
    rules = {"beta": 0.25, "estimator": "straight-through", "update": "codebook loss", "lr": 1.0, "decay": 0.9}
    return {**{name: array.round(2).tolist() for name, array in places.items()}, "n": [2.0] * 5, **rules}


def moment(state: State) -> tuple[State, dict[str, np.ndarray], State]:
    """What a state is (losses, who chose what), the steps taken from it, and the state after them.

    The decoder is the identity and the points stand for the encoder: they take the steps that its weights would.
    """
    z, t, e, n = (np.array(state[name]) for name in ("points", "targets", "codes", "n"))
    k, lr = reference.nearest(z, e), state["lr"]
    q, (counts, sums) = reference.look_up(e, k), reference.statistics(z, e, k)
    codebook, commitment = reference.losses(z, e, k, state["beta"])
    losses = {"reconstruction": float(np.mean((q - t) ** 2)), "codebook": codebook, "commitment": commitment}
    facts = {**losses, "perplexity": reference.perplexity(counts), "indices": k.tolist(), "counts": counts.tolist()}
    estimate = {"straight-through": reference.straight_through, "rotation trick": reference.rotation_trick}
    by_q = 2 / z.size * (q - t)  # of the reconstruction loss
    by_z = estimate[state["estimator"]](by_q, z, q) if state["estimator"] in estimate else 0 * by_q
    tied, by_e = reference.losses_gradient(z, e, k, state["beta"])
    after = e - lr * by_e if state["update"] == "codebook loss" else e
    if state["update"] == "EMA":
        after, n = reference.ema(e, n, counts, sums, state["decay"])
    steps = {"commitment": -lr * tied, "reconstruction": -lr * by_z, "codebook": after - e, "to_code": q - z}
    moved = {"points": (z - lr * (by_z + tied)).tolist(), "codes": after.tolist(), "n": n.tolist()}
    return facts, steps, {**state, **moved}


def _run(state: State) -> dict[str, float]:
    """Means over the second half of the steps, as points that change codes make every number go up and down."""
    seen = []
    for _ in range(STEPS):
        before, _, state = moment(state)
        now, steps, _ = moment(state)
        changes = np.mean(np.not_equal(before["indices"], now["indices"]))
        seen.append(
            [now["reconstruction"], now["perplexity"], np.linalg.norm(steps["to_code"], axis=1).mean(), changes]
        )
    values = [*np.mean(seen[STEPS // 2 :], 0), np.linalg.norm(state["points"], axis=1).max()]
    names = ("reconstruction", "perplexity", "distance", "changes", "farthest")
    return {name: float(value) for name, value in zip(names, values, strict=True)}
