"""The arithmetic of ``plane.js``, computed by headless Chromium, against ``plane.moment``.

That is ``reference.py`` put together; ``test_plane`` holds it against finite differences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plane_page import whole_page
from vqkit import reference
from vqkit.gradients.explain.plane import moment

RULES = [(a, b) for a in ("straight-through", "rotation trick", "none") for b in ("codebook loss", "EMA", "frozen")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plane") / "page.html"
    path.write_text(whole_page(), "utf-8")
    return path


def drawn_states(number: int) -> list[dict[str, Any]]:
    """Of all kinds: spread, on a grid (ties), with zero vectors, opposite, far, tiny; every switch in turn."""
    draw = np.random.default_rng(0)
    states = []
    for i in range(number):
        n, k = draw.integers(1, 13), draw.integers(1, 8)
        z, t, e = draw.normal(size=(n, 2)), draw.normal(size=(n, 2)), draw.normal(size=(k, 2))
        kind = i // len(RULES) % 7
        if kind == 1:
            z, t, e = (draw.integers(-2, 3, x.shape).astype(float) for x in (z, t, e))
        elif kind == 2:
            z[draw.integers(n)], e[draw.integers(k)] = 0, 0
        elif kind == 3:
            e = e[:1]
            z = -e * draw.uniform(0.01, 3, (n, 1))
        elif kind == 4:
            z, t, e = z + 1e4, t + 1e4, e + 1e4
        elif kind == 5:
            z *= 10.0 ** draw.integers(-9, 0, (n, 1))
        elif kind == 6:
            e[:] = e[0]  # all codes are equal
        estimator, update = RULES[i % len(RULES)]
        beta, lr, decay = draw.choice([0, 0.25, 2]), draw.choice([0.1, 1]), draw.choice([0, 0.9, 0.99])
        places = {
            "points": z.tolist(),
            "targets": t.tolist(),
            "codes": e.tolist(),
            "n": draw.uniform(0, 5, len(e)).tolist(),
        }
        numbers = {"beta": float(beta), "lr": float(lr), "decay": float(decay)}
        states.append({**places, **numbers, "estimator": estimator, "update": update})
    return states


def expected(state: dict[str, Any]) -> dict[str, Any]:
    facts, steps, after = moment(state)
    losses = [facts[name] for name in ("reconstruction", "codebook", "commitment")]
    places = {f"{name} after": after[name] for name in ("points", "codes", "n")}
    pulls = {name: steps[name] / -state["lr"] for name in ("reconstruction", "commitment")}
    return {**{name: facts[name] for name in ("indices", "counts", "perplexity")}, "losses": losses, **pulls, **places}


COMPUTE = """states => states.map(state => {
  const given = JSON.stringify(state), l = Plane.losses(state), by = Plane.gradients(state), after = Plane.step(state);
  return {
    pure: JSON.stringify(state) === given, nearest: Plane.nearest(state.points, state.codes),
    indices: l.indices, counts: l.counts, perplexity: l.perplexity,
    losses: [l.reconstruction, l.codebook, l.commitment], reconstruction: by.reconstruction, commitment: by.commitment,
    "points after": after.points, "codes after": after.codes, "n after": after.n,
    kept: ["targets", "beta", "lr", "decay", "estimator", "update"].every(name => after[name] === state[name]),
  };
})"""


def test_the_arithmetic_is_that_of_the_reference(open_page, path: Path) -> None:
    states = drawn_states(315)
    tied = zero = opposite = 0
    for i, (state, found) in enumerate(zip(states, open_page(path).evaluate(COMPUTE, states), strict=True)):
        assert found.pop("pure") and found.pop("kept"), i
        right = expected(state)
        assert found.pop("nearest") == right["indices"], i
        assert found.keys() == right.keys()
        for name, values in right.items():
            error, largest = np.abs(np.subtract(found[name], values)).max(), np.abs(values).max()
            assert error <= 1e-12 * largest, f"{name} of state {i}, {error} of {largest}: {state}"
        z, e = np.array(state["points"]), np.array(state["codes"])
        distances = np.sort(reference.squared_distances(z, e))
        tied += bool(len(e) > 1 and (distances[:, 0] == distances[:, 1]).any())
        zero += not (z.any(1).all() and e.any(1).all())
        opposite += i // 9 % 7 == 3
    assert min(tied, zero, opposite) > 25


def test_each_cell_holds_what_is_nearest_to_its_code(open_page, path: Path) -> None:
    draw = np.random.default_rng(1)
    spread = [draw.normal(size=(k, 2)) for k in (1, 2, 3, 7, 12) for _ in range(10)]
    grids = [draw.integers(-2, 3, (k, 2)).astype(float) for k in (4, 9) for _ in range(10)]
    given = [codes.tolist() for codes in spread + grids]
    cells_of = open_page(path).evaluate("given => given.map(codes => Plane.cells(codes, 1.6))", given)
    for codes, cells in zip(spread + grids, cells_of, strict=True):
        asked = draw.uniform(-1.6, 1.6, (30, 2))
        for p, k in zip(asked, reference.nearest(asked, codes), strict=True):
            assert [j for j, cell in enumerate(cells) if cell and _inside(p, np.array(cell))] == [k]


def _inside(p: np.ndarray, corners: np.ndarray) -> bool:
    """Of a convex polygon: on one side of every edge."""
    edges, ways = np.roll(corners, -1, 0) - corners, p - corners
    turns = edges[:, 0] * ways[:, 1] - edges[:, 1] * ways[:, 0]
    return bool((turns >= 0).all() or (turns <= 0).all())
