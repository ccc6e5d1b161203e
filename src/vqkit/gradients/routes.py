"""Where a gradient can go, by walking autograd's graph, and how much of it arrives, by a backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from vqkit.gradients.table import Route

Node = Any  # of autograd's graph: a grad_fn


class Edge(NamedTuple):
    """From a node to one that its backward hands a gradient to, as that one's output number ``output``."""

    source: Node
    target: Node
    output: int


def edges_of(loss: Tensor) -> list[Edge]:
    """Every edge of the graph behind ``loss``, each once, those nearest to the loss first."""
    found: list[Edge] = []
    if loss.grad_fn is None:
        return found
    waiting, seen = [loss.grad_fn], {loss.grad_fn}
    for node in waiting:
        for target, output in node.next_functions:
            if target is None:
                continue
            found.append(Edge(node, target, output))
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return found


def reached(loss: Tensor, tensors: Iterable[Tensor]) -> list[bool]:
    """Whether the graph behind ``loss`` leads to each tensor (to itself: yes)."""
    ends = {(edge.target, edge.output) for edge in edges_of(loss)}
    if loss.requires_grad:
        ends.add(_end(loss))
    return [t.requires_grad and _end(t) in ends for t in tensors]


def _end(tensor: Tensor) -> tuple[Node, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """``d loss / d tensor`` for each, None where there is no path; fills no ``.grad`` of a leaf and keeps the graph."""
    paths = reached(loss, tensors)
    ends = [t for t, path in zip(tensors, paths, strict=True) if path]
    found = iter(torch.autograd.grad(loss, ends, retain_graph=True, allow_unused=True) if ends else ())
    arrived = []
    for tensor, path in zip(tensors, paths, strict=True):
        gradient = next(found) if path else None
        arrived.append(torch.zeros_like(tensor) if path and gradient is None else gradient)
    return arrived


def route(loss: Tensor, tensors: Sequence[Tensor]) -> Route:
    """What ``loss`` gives to ``tensors`` together."""
    return route_of(gradients(loss, tensors))


def route_of(arrived: Sequence[Tensor | None]) -> Route:
    """The route that gradients say: ``norm = sqrt(sum of squares)`` over all of them."""
    if not arrived:
        return Route(0.0, "no parameters")
    live = [real(g).square().sum().cpu() for g in arrived if g is not None]
    if not live:
        return Route(0.0, "no path")
    norm = float(torch.stack(live).sum().sqrt())
    return Route(norm, "zero" if norm == 0 else "flows" if math.isfinite(norm) else "not finite")


def real(gradient: Tensor) -> Tensor:
    """As flat real numbers in float64; of complex ones both parts."""
    flat = (gradient.to_dense() if gradient.is_sparse else gradient).detach().flatten()
    return (torch.view_as_real(flat).flatten() if flat.is_complex() else flat).double()
