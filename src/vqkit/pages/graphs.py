"""Directed graphs as inline SVG, in rows from top to bottom; knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from vqkit.pages.document import Html, tag

# In SVG units, which are pixels: a graph keeps its size, and where it is wider than the screen its box scrolls.
LETTER, SMALL = 7.0, 6.2  # the width of a letter of text at 13 and 11.5 px, rather more than less
GAP, TALL = 12, 70  # between neighbours of a row, from row to row
PORT, LANE = 16, 6  # between arrows at one node, between the strokes of one arrow
SWEEPS = 60

CSS = """
.graph svg{width:auto;max-width:none;font:13px var(--sans)} .graph .scroll{margin-top:.6rem;padding:3px}
.graph rect{fill:var(--wash);stroke:var(--soft);stroke-width:1} .graph text{fill:var(--ink);}
.graph .leaf rect{fill:var(--paper);stroke-width:2;stroke:var(--ink)} .graph .leaf text{font-weight:600}
.graph .apart rect{fill:var(--paper);stroke-dasharray:3 3} .graph .apart text{fill:var(--soft)}
.graph text.small{font-size:11.5px;fill:var(--soft);font-weight:400}
.graph text.on{font-size:11.5px;paint-order:stroke;stroke:var(--paper);stroke-width:4px}
.graph g.c{color:var(--soft)} .graph path{fill:none;stroke:currentColor;stroke-width:2}
.graph .c path{stroke-width:1.25} .graph path.head{fill:currentColor;stroke:none}
.graph path.cut{stroke-dasharray:5 4} .graph path.bar{stroke-dasharray:none;stroke:var(--ink);stroke-width:1.75}
.red{color:#c62828} @media screen and (prefers-color-scheme:dark){.red{color:#ff7b72}}
.key.c{color:var(--soft)} .key.cut{border-top-style:dashed}
.graphs{display:grid;gap:2rem 2.25rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))}
"""

Kind = Literal["usual", "leaf", "apart"]  # leaf: a bold box, apart: a dashed one
Style = Literal["usual", "cut"]  # cut: dashed, with bars across
Colour = Literal["c0", "c1", "c2", "c3", "red", "c"]  # of the page's lines; "c" is gray


class Node(NamedTuple):
    """A box of two lines, or of one where there is no note."""

    label: str
    note: str = ""
    kind: Kind = "usual"

    def size(self) -> tuple[float, float]:
        letter = 1.1 * LETTER if self.kind == "leaf" else LETTER
        return max(letter * len(self.label), SMALL * len(self.note)) + 18, 41 if self.note else 26


class Arrow(NamedTuple):
    """From a node down to another: a stroke for each colour, and words beside it."""

    source: str
    target: str
    colours: Sequence[Colour] = ("c",)
    label: str = ""
    style: Style = "usual"


Place = str | tuple[int, int]  # a node, or where arrow number i passes row number r


def directed_graph(
    nodes: Mapping[str, Node], arrows: Sequence[Arrow], *, title: str, legend: Mapping[str, str] | None = None
) -> Html:
    """A figure: each node stands above all that it points to, as far down as that allows.

    Neighbours of a row stand in the order of what they join. ``legend``: CSS classes of a key, and its meaning.

    Raises:
        ValueError: no node; an arrow from or to a node that is not in ``nodes``; arrows in a circle.

    >>> figure = directed_graph({"f": Node("f"), "x": Node("x", kind="leaf")}, [Arrow("f", "x")], title="f of x")
    >>> figure.count("<rect"), figure.count('class="head')
    (2, 1)
    """
    if not nodes:
        raise ValueError("nodes is empty; a graph needs at least one.")
    rows, paths = _rows(nodes, arrows)
    sizes: dict[Place, tuple[float, float]] = {p: (LANE, 16) for row in rows for p in row}
    sizes.update((name, node.size()) for name, node in nodes.items())
    x = _across(rows, paths, sizes)
    middle = {p: TALL * r + 22.0 for r, row in enumerate(rows) for p in row}
    ports = _ports(paths, x, sizes)
    drawn = [
        _arrow(
            arrow,
            [
                (at, middle[p] - sizes[p][1] / 2, middle[p] + sizes[p][1] / 2)
                for at, p in zip(across, path, strict=True)
            ],
        )
        for arrow, path, across in zip(arrows, paths, ports, strict=True)
    ]
    reach = [(x[p], sizes[p][0] / 2) for p in x]  # and of labels, which stand beside an arrow's first stretch
    reach += [((a + b) / 2, SMALL * len(arrow.label) + 12) for arrow, (a, b, *_) in zip(arrows, ports, strict=True)]
    left, right = min(at - half for at, half in reach) - 1, max(at + half for at, half in reach) + 1
    joins = {"usual": "to", "cut": "cut from"}
    said = ", ".join(f"{nodes[a.source].label} {joins[a.style]} {nodes[a.target].label}" for a in arrows)
    view = {"viewBox": f"{left:.0f} 0 {right - left:.0f} {TALL * (len(rows) - 1) + 44}", "width": f"{right - left:.0f}"}
    svg = tag(
        "svg",
        {**view, "role": "img", "aria-label": f"{title}: {said}"},
        *(strokes for strokes, _ in drawn),
        *(marks for _, marks in drawn),
        *(_box(nodes[name], x[name], middle[name]) for name in nodes),
    )
    keys = (tag("span", None, tag("i", {"class": f"key {kind}"}), said) for kind, said in (legend or {}).items())
    caption = tag("figcaption", None, tag("strong", None, title), tag("span", {"class": "legend"}, *keys))
    # Where it is wider than the screen, the keyboard must be able to scroll it.
    box = tag("div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": title}, svg)
    return tag("figure", {"class": "graph"}, caption, box)


def _rows(nodes: Mapping[str, Node], arrows: Sequence[Arrow]) -> tuple[list[list[Place]], list[list[Place]]]:
    """The places of each row, the top one first, and the places that each arrow passes, its two nodes included."""
    for arrow in arrows:
        for end in {arrow.source, arrow.target} - set(nodes):
            raise ValueError(f"arrow {arrow.source!r} to {arrow.target!r}: {end!r} is no node; add it to nodes.")
    above = dict.fromkeys(nodes, 0)  # how many rows a node is above the last one: its longest way down
    for _ in nodes:
        for arrow in arrows:
            above[arrow.source] = max(above[arrow.source], above[arrow.target] + 1)
    if any(above[arrow.source] <= above[arrow.target] for arrow in arrows) or max(above.values()) >= len(nodes):
        raise ValueError("arrows form a circle, which has no top; leave one of them out.")
    rows: list[list[Place]] = [[name for name in nodes if above[name] == r] for r in range(max(above.values()), -1, -1)]
    paths: list[list[Place]] = []
    for i, arrow in enumerate(arrows):
        passed = range(len(rows) - above[arrow.source], len(rows) - 1 - above[arrow.target])
        for r in passed:
            rows[r].append((i, r))
        paths.append([arrow.source, *((i, r) for r in passed), arrow.target])
    return rows, paths


def _across(
    rows: list[list[Place]], paths: list[list[Place]], sizes: Mapping[Place, tuple[float, float]]
) -> dict[Place, float]:
    """The middle of each place: near the mean of what it is joined to, and apart from its neighbours by GAP or more."""
    beside: dict[Place, list[tuple[Place, float]]] = {p: [] for row in rows for p in row}
    for path in paths:
        for upper, lower in pairwise(path):
            # Where an arrow only passes, it should be straight.
            weight = 8.0 if isinstance(upper, tuple) and isinstance(lower, tuple) else 1.0
            beside[lower].append((upper, weight))
            beside[upper].append((lower, weight))
    x = {p: 100.0 * i for row in rows for i, p in enumerate(row)}
    for sweep in range(2 * SWEEPS):
        for row in rows[::-1] if sweep % 2 else rows:
            wanted = {
                p: sum(x[q] * w for q, w in beside[p]) / sum(w for _, w in beside[p]) if beside[p] else x[p]
                for p in row
            }
            if sweep < SWEEPS:  # the first half of them also finds the order
                row.sort(key=lambda p: wanted[p])
            # Pushed to the right where they would overlap, pushed to the left, and the mean of both.
            halves = [sizes[p][0] / 2 for p in row]
            offsets = np.cumsum([0.0, *(a + GAP + b for a, b in pairwise(halves))])
            free = np.array([wanted[p] for p in row]) - offsets
            placed = np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]
            x.update(zip(row, (placed / 2 + offsets).tolist(), strict=True))
    return x


def _ports(
    paths: list[list[Place]], x: Mapping[Place, float], sizes: Mapping[Place, tuple[float, float]]
) -> list[list[float]]:
    """Across, where each arrow meets each of its places: side by side at a node, in the order in which they come."""
    ports = [[x[p] for p in path] for path in paths]
    for end, towards in ((0, 1), (-1, -2)):
        for node in {path[end] for path in paths}:
            met = sorted((i for i, path in enumerate(paths) if path[end] == node), key=lambda i: x[paths[i][towards]])
            step = min(PORT, (sizes[node][0] - 16) / max(1, len(met) - 1))
            for k, i in enumerate(met):
                ports[i][end] += (k - (len(met) - 1) / 2) * step
    return ports


def _arrow(arrow: Arrow, joints: Sequence[tuple[float, float, float]]) -> tuple[Html, Html]:
    """The strokes, and what is to be seen above all strokes: bars and words. ``joints``: across, top, bottom."""
    strokes, marks = [], []
    for k, colour in enumerate(arrow.colours):
        aside = (k - (len(arrow.colours) - 1) / 2) * LANE
        d = f"M{joints[0][0] + aside:.1f} {joints[0][2]:.1f}"
        for (x, _, y), (x1, top, bottom) in pairwise(joints):
            half_way = f"{(y + top) / 2:.1f}"
            d += f"C{x + aside:.1f} {half_way} {x1 + aside:.1f} {half_way} {x1 + aside:.1f} {top:.1f}V{bottom:.1f}"
        line = tag("path", {"class": arrow.style, "d": d.rpartition("V")[0]})  # not into the box
        head = tag(
            "path", {"class": "head", "d": f"M{joints[-1][0] + aside - 3.5:.1f} {joints[-1][1] - 7:.1f}h7l-3.5 7z"}
        )
        strokes.append(tag("g", {"class": colour}, line, head))
    x, y = (joints[0][0] + joints[1][0]) / 2, (joints[0][2] + joints[1][1]) / 2
    # Words stand to the left of bars, so that a stroke that goes on beside them stays free.
    aside, anchor = (-9, "end") if arrow.style == "cut" else (7, "start")
    if arrow.style == "cut":
        marks.append(tag("path", {"class": "bar", "d": f"M{x - 6:.1f} {y:.1f}l12 -5m0 5l-12 5"}))
    marks.append(_text("on", x + aside, y + 4, arrow.label, anchor))
    return tag("g", None, *strokes), tag("g", None, *marks)


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> Html:
    return tag("text", {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}, text)


def _box(node: Node, x: float, y: float) -> Html:
    width, height = node.size()
    corner = {"x": f"{x - width / 2:.1f}", "y": f"{y - height / 2:.1f}", "width": f"{width:.1f}", "height": height}
    label = _text("name", x, y + (-3 if node.note else 4.5), node.label)
    return tag("g", {"class": node.kind}, tag("rect", {**corner, "rx": 4}), label, _text("small", x, y + 12, node.note))
