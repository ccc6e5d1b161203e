"""Part 3: the reconstruction loss's gradient on its way to the encoder, the reshape, and the whole graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.gradients.explain.published import (
    BETA,
    CROP,
    DIM,
    STEPS,
    Code,
    Published,
    Steps,
    held_out,
    permuted,
    trained,
)
from vqkit.gradients.explain.walked import Step, drawn, name_of, nodes_of, steps_of
from vqkit.gradients.routes import gradients, route
from vqkit.gradients.table import Route
from vqkit.pages import Html
from vqkit.pages.graphs import Colour

# What forward uses and backward does not: three detached values, and indices, which have no derivative.
CUTS = (
    Step("Add", "Sub", cut="detach"),
    Step("codebook loss", "z_flat", cut="detach"),
    Step("commitment loss", "Embedding", cut="detach"),
    Step("Embedding", "argmin", cut="k"),
    Step("argmin", "Add#2", cut="no derivative"),
)
NOTES = {"Add": "z_q", "Embedding": "e_k = e[k]", "Sub": "e_k - z", "argmin": "no node", "Add#2": "distances"}


def reshaped(z: Tensor) -> Tensor:
    """The fault: (B, D, H, W) to (BHW, D) without a permutation, so that a row is a stretch of one channel."""
    return z.reshape(-1, z.shape[1])


def reshaped_back(flat: Tensor, shape: torch.Size) -> Tensor:
    return flat.reshape(shape)


LAYOUTS = {
    "permuted, and back": Code(),
    "reshaped, and back": Code(reshaped, reshaped_back),
    "permuted, then reshaped back": Code(unflatten=reshaped_back),
}


def chain(say: Say) -> Part:
    """Norms of dL/d(x_hat, z_q, ..., encoder); layouts that mix positions; autograd's graph of the published code."""
    say("training a small VQ-VAE on the bundled photos")
    model = trained()
    steps = model(held_out(CROP, 64))
    facts: dict[str, Any] = {"steps": STEPS, "norms": _norms(model, steps), "algebra": _algebra(model, steps)}
    stopped = model.decoder(model.code.unflatten(steps.e_k.detach(), steps.z.shape))
    facts["stopped"] = route(F.mse_loss(stopped, steps.x), list(model.encoder.parameters()))._asdict()
    entries = {"image": steps.x[0].numel(), "vector": DIM, "ratio": steps.x[0].numel() / DIM}
    facts["sums"] = entries | {"share": _share(steps, 1.0), "published": _share(steps, 1 / entries["ratio"])}
    say("training one more, with vectors that were reshaped and not permuted")
    facts["layouts"] = _layouts(model, steps)
    facts["graph"] = _graph(model, steps)
    return Part("chain", "From the loss to the encoder", facts, _tables(facts), {"graph": _figure(facts["graph"])})


def _norms(model: Published, steps: Steps) -> dict[str, Any]:
    """What each loss gives to each named tensor, and whether the first loss's gradient is the same numbers as above."""
    named = {"x_hat": steps.x_hat, "z_q": steps.z_q, "z_q_flat": steps.z_q_flat, "z_flat": steps.z_flat, "z": steps.z}
    losses = {name: getattr(steps, name) for name in ("reconstruction", "commitment", "codebook")}
    groups: dict[str, list[Tensor]] = {name: [tensor] for name, tensor in named.items()}
    groups |= {"encoder": list(model.encoder.parameters()), "codebook": [model.codebook]}
    found: dict[str, Any] = {}
    for name, tensors in groups.items():
        found[name] = {loss: route(value, tensors)._asdict() for loss, value in losses.items()}
        found[name]["shape"] = list(tensors[0].shape) if len(tensors) == 1 else [sum(t.numel() for t in tensors)]
    given = dict(zip(named, gradients(steps.reconstruction, list(named.values())), strict=True))
    rows = {name: permuted(g) if g.ndim == 4 else g for name, g in given.items() if g is not None and name != "x_hat"}
    for name, gradient in rows.items():
        found[name]["same_numbers"] = torch.equal(gradient, rows["z_q"])
    return found


def _algebra(model: Published, steps: Steps) -> dict[str, float]:
    """How far autograd's gradients are from the formulas, relative to them."""
    residual = (steps.z_flat - steps.e_k).detach()
    by_hand = {
        "codebook": torch.zeros_like(model.codebook).index_add_(0, steps.k, -2 * residual / residual.numel()),
        "commitment": 2 * BETA * residual / residual.numel(),
    }
    (at_e,) = torch.autograd.grad(steps.codebook, model.codebook, retain_graph=True)
    (at_z,) = torch.autograd.grad(steps.commitment, steps.z_flat, retain_graph=True)
    (at_z_q,) = torch.autograd.grad(steps.reconstruction, steps.z_q_flat, retain_graph=True)
    weights = list(model.encoder.parameters())
    total = steps.reconstruction + steps.codebook + steps.commitment
    at_weights = torch.autograd.grad(total, weights, retain_graph=True)
    through = torch.autograd.grad(steps.z_flat, weights, at_z_q + by_hand["commitment"], retain_graph=True)
    flat = [torch.cat([g.flatten() for g in part]) for part in (at_weights, through)]
    pairs = {
        "codebook": (at_e, by_hand["codebook"]),
        "commitment": (at_z, by_hand["commitment"]),
        "encoder": tuple(flat),
    }
    return {name: ((a - b).norm() / b.norm()).item() for name, (a, b) in pairs.items()}


def _share(steps: Steps, weight: float) -> float:
    """The norm of the commitment's gradient at z, times ``weight``, over that of the reconstruction's."""
    return weight * route(steps.commitment, [steps.z]).norm / route(steps.reconstruction, [steps.z]).norm


@torch.no_grad()
def _layouts(model: Published, steps: Steps) -> dict[str, Any]:
    """Each layout with the same weights, and one trained with the fault."""
    fault = LAYOUTS["reshaped, and back"]
    found = {name: _measured(model, code, steps) for name, code in LAYOUTS.items()}
    found["reshaped, trained like that"] = _measured(trained(fault), fault, steps)
    right, *_, learnt = found.values()
    return {"all": found, "right": right, "reshaped": found["reshaped, and back"], "learnt": learnt}


def _measured(model: Published, code: Code, steps: Steps) -> dict[str, Any]:
    z = model.encoder(steps.x)
    rows = code.flatten(z)
    distances = torch.cdist(rows, model.codebook)
    e_k = model.codebook[distances.argmin(1)]
    x_hat = model.decoder(code.unflatten(e_k, z.shape))
    positions, channels = torch.arange(z[0, 0].numel()).view(1, 1, *z.shape[2:]), torch.arange(DIM).view(1, -1, 1, 1)
    held = [[len(set(row)) for row in code.flatten(index.expand_as(z)).tolist()] for index in (positions, channels)]
    return {
        "positions": max(held[0]),
        "channels": max(held[1]),
        "share_mixed": sum(n > 1 for n in held[0]) / len(rows),
        "distance": ((rows - e_k).square().mean() / rows.var()).item(),
        "error": F.mse_loss(x_hat, steps.x).item(),
    }


def _graph(model: Published, steps: Steps) -> dict[str, Any]:
    losses = {name: getattr(steps, name) for name in ("reconstruction", "codebook", "commitment")}
    boxes = {
        "reconstruction": nodes_of(steps.reconstruction, [steps.x_hat]),
        "codebook loss": nodes_of(steps.codebook, [steps.e_k]),
        "commitment loss": nodes_of(steps.commitment, [steps.z_flat]),
        "decoder": nodes_of(steps.x_hat, [steps.z_q]),
        "z_flat": nodes_of(steps.z_flat, [steps.z]),
        "encoder": nodes_of(steps.z),
        "codebook e": nodes_of(model.codebook),
    }
    walked = steps_of(losses, [steps.e_k - steps.z_flat, steps.distances], boxes)
    return {
        "boxes": {name: [name_of(node) for node in nodes] for name, nodes in boxes.items()},
        "steps": [step._asdict() for step in (*walked, *CUTS)],
        "indices_require_grad": steps.k.requires_grad,
        "distances_require_grad": steps.distances.requires_grad,
    }


def _figure(graph: dict[str, Any]) -> Html:
    counted = {name: f"{len(graph['boxes'][name])} nodes" for name in ("encoder", "decoder")}
    listed = {name: " ".join(nodes) for name, nodes in graph["boxes"].items() if name not in (*counted, "codebook e")}
    colours: dict[str, Colour] = {"reconstruction": "c0", "codebook": "c1", "commitment": "c2"}
    legend = {"c0": "reconstruction", "c1": "codebook", "c2": "commitment", "c": "no loss", "c cut": "cut"}
    return drawn("The published code, walked", graph["steps"], NOTES | listed | counted, colours, legend)


def _tables(facts: dict[str, Any]) -> dict[str, Table]:
    losses = ("reconstruction", "commitment", "codebook")
    same = {True: "yes", False: "no", None: ""}
    norms, layouts = [], []
    for name, row in facts["norms"].items():
        cells = [str(Route(**row[loss])) for loss in losses]
        norms.append(
            (name, "\N{MULTIPLICATION SIGN}".join(map(str, row["shape"])), *cells, same[row.get("same_numbers")])
        )
    for name, row in facts["layouts"]["all"].items():
        mixed = f"{row['share_mixed']:.0%}"
        layouts.append((name, row["positions"], row["channels"], mixed, row["distance"], row["error"]))
    heads = ("gradient at", "shape", "reconstruction", "commitment", "codebook loss", "same numbers as at z_q")
    columns = ("layout", "positions per row", "channels per row", "mixed rows", "(z - e)² / variance", "error")
    return {
        "norms": Table("Norm of each loss's gradient on the way", heads, norms),
        "layouts": Table("Layouts of the vectors", columns, layouts),
    }
