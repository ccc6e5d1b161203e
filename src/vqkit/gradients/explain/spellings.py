"""Part 2: the ways to write the straight-through estimator: their values, their gradients, and one slip."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.data import to_image
from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.gradients.explain.published import CROP, STEPS, Code, Published, held_out, straight, trained
from vqkit.pages import Html, Linear, Series, encode_within, image_row, line_chart


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@cache
def _registered() -> Callable[[Tensor, Tensor], Tensor]:
    """An operator with a gradient of its own; PyTorch keeps it for the life of the process, so it is made once."""

    @torch.library.custom_op("vqkit::explained_straight_through", mutates_args=())
    def operator(z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    operator.register_autograd(lambda ctx, gradient: (gradient, None))
    return operator


def shifted(z: Tensor, q: Tensor) -> Tensor:
    return q + (z - z.detach())


def slip(z: Tensor, q: Tensor) -> Tensor:
    return z - (q - z).detach()


SLIP = "z - (q - z).detach()"
SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z + (q - z).detach()": straight,
    "q + (z - z.detach())": shifted,
    "autograd.Function": _Copied.apply,
    "custom_op, register_autograd": lambda z, q: _registered()(z, q),
    SLIP: slip,
}


def spellings(say: Say) -> Part:
    """Gradients and values of each spelling on latents of held-out crops; the slip; where the derivative is taken."""
    say("training a small VQ-VAE on the bundled photos")
    model = trained()
    with torch.no_grad():
        steps = model(held_out(CROP, 64))
    say("five spellings of one gradient")
    z, q = steps.z_flat, steps.e_k
    ways = {name: _spelled(spelling, model, z, q, steps.x) for name, spelling in SPELLINGS.items()}
    say("training one more, with the slip")
    facts: dict[str, Any] = {
        "vectors": len(z),
        "entries": z.numel(),
        "training_steps": STEPS,
        "first": ways["z + (q - z).detach()"],
        "spellings": ways,
        "all_copied": all(way["copied"] for way in ways.values()),
        "slip": _slipped(model, z, q, steps.x) | {"decoder": _decoded(model, q, slip(z, q), steps.x)},
        "derivative": _cubed() | {"decoder": _decoded(model, q, z, steps.x)},
    }
    figures = {"derivative": _tangents(facts["derivative"]), "slip": _photos(model)}
    return Part("spellings", "Ways to write the estimator", facts, _tables(facts), figures)


def _spelled(
    spelling: Callable[[Tensor, Tensor], Tensor], model: Published, z: Tensor, q: Tensor, x: Tensor
) -> dict[str, Any]:
    z = z.clone().requires_grad_()
    value = spelling(z, q)
    at_value, at_z = torch.autograd.grad(_error(model, value, x), (value, z))
    found: dict[str, Any] = {"at_z_q": at_value.norm().item(), "at_z": at_z.norm().item()}
    found["copied"] = torch.equal(at_value, at_z)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        latent, code = z.detach().to(dtype), q.to(dtype)
        away = (spelling(latent, code) - code).abs()
        # Where one is at most twice the other, q - z is exact (Sterbenz's lemma), and z + (q - z) is q.
        close = (latent * code > 0) & (latent.abs() <= 2 * code.abs()) & (code.abs() <= 2 * latent.abs())
        found[name] = {"share": (away > 0).float().mean().item(), "largest": away.max().item()}
        found[name] |= {"close": close.float().mean().item(), "share_of_close": (away[close] > 0).float().mean().item()}
    return found


def _tables(facts: dict[str, Any]) -> dict[str, Table]:
    ways = []
    for name, way in facts["spellings"].items():
        shares = [f"{way[dtype]['share']:.2%}" for dtype in ("float32", "bfloat16")]
        same = "yes" if way["copied"] else "no"
        ways.append((name, way["at_z_q"], way["at_z"], same, *shares, way["bfloat16"]["largest"]))
    heads = (
        "spelling",
        "norm at z_q",
        "norm at z",
        "same bits",
        "not q, float32",
        "not q, bfloat16",
        "largest error, bfloat16",
    )
    found = facts["slip"]
    errors = [
        ("q", "q", found["error_of_codes"]),
        ("q", "2z - q, the slip", found["error_of_slip"]),
        ("q", "z, not quantized", found["error_of_z"]),
        ("2z - q", "2z - q, as in training", found["trained"]["shown"]),
        ("2z - q", "q, as from a file", found["trained"]["decoded"]),
    ]
    return {
        "spellings": Table("Spellings: gradients and values", heads, ways),
        "errors": Table("Error of the decoder", ("trained on", "given", "squared error"), errors),
    }


def _error(model: Published, rows: Tensor, x: Tensor) -> Tensor:
    """The reconstruction loss where the decoder is given ``rows``."""
    z_q = model.code.unflatten(rows, torch.Size((len(x), rows.shape[1], x.shape[2] // 4, x.shape[3] // 4)))
    return (model.decoder(z_q) - x).square().mean()


@torch.no_grad()
def _slipped(model: Published, z: Tensor, q: Tensor, x: Tensor) -> dict[str, Any]:
    value = slip(z, q)
    found: dict[str, Any] = {"distance_of_z": (z - q).square().mean().sqrt().item()}
    found["distance"] = (value - q).square().mean().sqrt().item()
    found["codes"] = int((value[:, None] == model.codebook).all(2).any(1).sum())
    for name, rows in (("codes", q), ("slip", value), ("z", z)):
        found[f"error_of_{name}"] = _error(model, rows, x).item()
    other = trained(Code(through=slip))
    seen = other(x)
    found["trained"] = {"shown": seen.reconstruction.item(), "decoded": _error(other, seen.e_k, x).item()}
    return found


def _cubed() -> dict[str, Any]:
    """``f(q) = q^3`` behind the rounding of ``z = 2x`` at x = 0.7: the derivatives that autograd gives."""
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = 2 * x
    through = straight(z, torch.round(z)) ** 3
    found = {}
    for name, f in (("at_q", through), ("at_z", z**3), ("rounded", torch.round(z) ** 3)):
        by_z, by_x = torch.autograd.grad(f, (z, x), retain_graph=True)
        found[name] = {"by_z": by_z.item(), "by_x": by_x.item()}
    return found


def _decoded(model: Published, q: Tensor, other: Tensor, x: Tensor) -> dict[str, float]:
    """Norms and cosine of the gradients of the reconstruction loss that a decoder gives at the codes and elsewhere."""
    at: list[Tensor] = []
    for point in (q, other):
        point = point.clone().requires_grad_()
        at += torch.autograd.grad(_error(model, point, x), point)
    cosine = torch.nn.functional.cosine_similarity(at[0].flatten(), at[1].flatten(), dim=0)
    return {"at_q": at[0].norm().item(), "elsewhere": at[1].norm().item(), "cosine": cosine.item()}


def _tangents(slopes: dict[str, Any]) -> Html:
    q = np.linspace(0.6, 1.8, 49)
    lines = [Series("f", q.tolist(), (q**3).tolist(), " ")]
    for name, at in (("at_q", 1.0), ("at_z", 1.4)):
        slope, near = slopes[name]["by_z"], q[abs(q - at) < 0.31]
        tangent = (at**3 + slope * (near - at)).tolist()
        lines.append(Series(f"slope at {name[-1]} = {at:g}:", near.tolist(), tangent, f"{slope:.4g}"))
    return line_chart(lines, Linear(), title="f(q) = q³", x_label="q")


@torch.no_grad()
def _photos(model: Published) -> Html:
    x = held_out(128, 1)
    steps = model(x)
    shown = [x[0], steps.x_hat[0], model.decoder(model.code.unflatten(slip(steps.z_flat, steps.e_k), steps.z.shape))[0]]
    labels = ("photo, held out", "from the codes", "from 2z - q, the slip")
    return image_row(list(zip(labels, encode_within([to_image(i) for i in shown], 30_000), strict=True)), "One decoder")
