"""Autograd's graph as steps between named boxes: walked, put together, and with the losses whose gradients pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from vqkit.gradients.routes import Node, edges_of
from vqkit.pages import Html, graphs

# Nodes that only rename or move numbers; a step leads on to what is behind them.
BOOKKEEPING = {"View", "UnsafeView", "Permute", "T", "Transpose", "Clone"}


class Step(NamedTuple):
    """From one box to the next in the direction of backward; without a loss: in no loss's graph. ``cut``: how, if."""

    source: str
    target: str
    losses: tuple[str, ...] = ()
    cut: str = ""
    label: str = ""


def nodes_of(end: Tensor, starts: Iterable[Tensor] = ()) -> list[Node]:
    """Every node of the graph behind ``end``, itself included, but for those behind ``starts``."""
    first = get_gradient_edge(end).node
    passed = {node for start in starts for node in nodes_of(start)}
    return [n for n in dict.fromkeys([first, *(edge.target for edge in edges_of(end))]) if n not in passed]


def name_of(node: Node) -> str:
    """``node.name()`` without "Backward0", as in "Round"."""
    return re.sub(r"Backward\d+$", "", node.name()).rpartition("::")[2]


def steps_of(losses: Mapping[str, Tensor], others: Sequence[Tensor], boxes: Mapping[str, Iterable[Node]]) -> list[Step]:
    """The graphs behind ``losses``, and those behind ``others``, which were computed but may be in no loss's graph.

    Nodes of one box become one. Any other node is its own, by its name; a name that returns is numbered, "Pow#2".
    """
    box = {node: name for name, nodes in boxes.items() for node in nodes}
    colours: dict[tuple[str, str], set[str]] = {}
    walked = [(name, edges_of(loss)) for name, loss in losses.items()] + [("", edges_of(other)) for other in others]
    onward = {edge.source: edge.target for _, edges in walked for edge in edges if name_of(edge.source) in BOOKKEEPING}

    def boxed(node: Node) -> str:
        while node not in box and node in onward:
            node = onward[node]
        if node not in box:
            alike = sum(name.partition("#")[0] == name_of(node) for name in set(box.values()))
            box[node] = f"{name_of(node)}#{alike + 1}" if alike else name_of(node)
        return box[node]

    for name, edges in walked:
        for edge in edges:
            source, target = boxed(edge.source), boxed(edge.target)
            if source != target:
                colours.setdefault((source, target), set()).add(name)
    return [Step(*ends, tuple(name for name in losses if name in passed)) for ends, passed in colours.items()]


def drawn(
    title: str,
    steps: Sequence[Mapping[str, Any]],
    notes: Mapping[str, str],
    colours: Mapping[str, graphs.Colour],
    legend: Mapping[str, str],
) -> Html:
    """Steps, as ``facts`` hold them, as a figure. Boxes on no loss's way are dashed."""
    on_the_way = {step[end] for step in steps if step["losses"] for end in ("source", "target")}
    sources = {step["source"] for step in steps}
    nodes, arrows = {}, []
    for step in steps:
        for name in (step["source"], step["target"]):
            kind: graphs.Kind = "apart" if name not in on_the_way else "usual" if name in sources else "leaf"
            nodes[name] = graphs.Node(name.partition("#")[0], notes.get(name, ""), kind)
        strokes = [colours[loss] for loss in step["losses"]] or ["c"]
        style: graphs.Style = "cut" if step["cut"] else "usual"
        arrows.append(graphs.Arrow(step["source"], step["target"], strokes, step["label"] or step["cut"], style))
    return graphs.directed_graph(nodes, arrows, title=title, legend=legend)
