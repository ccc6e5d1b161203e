"""Graphs as SVG: arrows lead down from box to box, boxes stand apart, nothing is drawn outside."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqkit.pages.graphs import Arrow, Colour, Node, directed_graph

COLOURS: list[Colour] = ["c0", "c1", "c2", "red", "c"]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Node], list[Arrow]]:
    """Up to nine nodes, in any order; arrows from a lower number to a higher, some between the same two."""
    size = draw(st.integers(1, 9))
    label = st.text("mW & <", min_size=1, max_size=12)
    nodes = {f"n{i}": Node(draw(label), draw(label | st.just(""))) for i in draw(st.permutations(range(size)))}
    ends = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda pair: pair[0] < pair[1])
    arrows = [
        Arrow(f"n{a}", f"n{b}", draw(st.lists(st.sampled_from(COLOURS), min_size=1, max_size=3, unique=True)))
        for a, b in (draw(st.lists(ends, max_size=14)) if size > 1 else [])
    ]
    return nodes, arrows


def drawn(nodes: dict[str, Node], arrows: list[Arrow]) -> tuple[list[float], dict[str, Any], list[list[float]]]:
    """The view box; each node's box as (left, top, right, bottom); each stroke's (x, y) at its start and end."""
    svg = ElementTree.fromstring(directed_graph(nodes, arrows, title="a & b")).find(".//svg")
    assert svg is not None
    boxes = []
    for rect in svg.iter("rect"):
        x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        boxes.append((x, y, x + width, y + height))
    strokes = []
    for path in svg.iter("path"):
        if path.attrib["class"] in ("usual", "cut"):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
            strokes.append([*numbers[:2], *numbers[-2:]])
    return [float(n) for n in svg.attrib["viewBox"].split()], dict(zip(nodes, boxes, strict=True)), strokes


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_arrows_lead_down_from_box_to_box_and_boxes_stand_apart(graph: tuple[dict[str, Node], list[Arrow]]) -> None:
    nodes, arrows = graph
    (left, top, width, height), boxes, strokes = drawn(nodes, arrows)
    each = list(boxes.values())
    for i, (x0, y0, x1, y1) in enumerate(each):
        assert left <= x0 and x1 <= left + width and top <= y0 and y1 <= top + height
        for u0, v0, u1, v1 in each[:i]:
            assert x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0, "two boxes overlap"
    owners = [arrow for arrow in arrows for _ in arrow.colours]
    for arrow, (x0, y0, x1, y1) in zip(owners, strokes, strict=True):
        source, target = boxes[arrow.source], boxes[arrow.target]
        assert y0 == pytest.approx(source[3], abs=0.11) and y1 == pytest.approx(target[1], abs=0.11) and y0 < y1
        assert source[0] <= x0 <= source[2] and target[0] <= x1 <= target[2]


def test_a_node_stands_in_the_lowest_row_above_all_that_it_points_to() -> None:
    nodes = {name: Node(name) for name in "abcde"}
    arrows = [Arrow("a", "b"), Arrow("b", "c"), Arrow("a", "c"), Arrow("d", "c")]
    _, boxes, _ = drawn(nodes, arrows)
    rows = {name: box[1] for name, box in boxes.items()}
    assert rows["a"] < rows["b"] < rows["c"] and rows["d"] == rows["b"] and rows["e"] == rows["c"]


def test_arrows_that_need_not_cross_do_not() -> None:
    names = [f"{side}{i}" for side in "uv" for i in (2, 0, 1)]
    arrows = [Arrow(f"u{i}", f"v{j}") for i, j in ((0, 2), (1, 1), (2, 0))]
    _, boxes, _ = drawn({name: Node(name) for name in names}, arrows)
    above, below = ([boxes[f"{side}{i}"][0] for i in order] for side, order in (("u", (0, 1, 2)), ("v", (2, 1, 0))))
    assert sorted(range(3), key=above.__getitem__) == sorted(range(3), key=below.__getitem__)


def test_a_cut_is_dashed_and_barred_colours_are_strokes_and_words_are_heard() -> None:
    arrows = [Arrow("f", "x", ["c0", "c2"], "[1, 1]"), Arrow("f", "y", label="a < b", style="cut")]
    nodes = {"f": Node("f"), "x": Node("x", kind="leaf"), "y": Node("y & z", kind="apart")}
    figure = directed_graph(nodes, arrows, title="f", legend={"c cut": "cut"})
    assert [figure.count(f'<g class="{name}"><path') for name in ("c0", "c2", "c")] == [1, 1, 1]
    assert figure.count('class="cut"') == figure.count('class="bar"') == 1 and figure.count('class="head"') == 3
    assert 'aria-label="f: f to x, f cut from y &amp; z"' in figure and "a &lt; b" in figure and "key c cut" in figure


@pytest.mark.parametrize(
    ("nodes", "arrows", "words"),
    [
        ("", [], "nodes is empty"),
        ("ab", [Arrow("a", "c")], "'c' is no node"),
        ("ab", [Arrow("c", "b")], "'c' is no node"),
        ("a", [Arrow("a", "a")], "circle"),
        ("abc", [Arrow("a", "b"), Arrow("b", "c"), Arrow("c", "b")], "circle"),
    ],
)
def test_what_is_no_graph_is_refused(nodes: str, arrows: list[Arrow], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        directed_graph({name: Node(name) for name in nodes}, arrows, title="t")
