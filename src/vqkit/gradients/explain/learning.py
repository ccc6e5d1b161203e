"""Part 4: which loss trains what, what each asks of z, and what becomes of the model without one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqkit.codebooks import Given
from vqkit.gradients.explain.parts import Part, Say, Table
from vqkit.gradients.explain.published import BETA, CODES, CROP, DIM, Published, Steps, held_out, trained
from vqkit.gradients.explain.variants import MEASURES, STANDARD, STEPS, VARIANTS, History, pull, train_all, verdict
from vqkit.gradients.routes import gradients, route
from vqkit.gradients.table import Route
from vqkit.pages import Linear, Log, Series, line_chart, number, tag
from vqkit.quantizers import VectorQuantizer

LOSSES = ("reconstruction", "codebook", "commitment")
# Variants that share a question share their charts: what the encoder is told, which losses there are, how codes learn.
GROUPS = {
    "encoder": ("standard", "stopped", "unstopped", "commitment_only"),
    "terms": ("standard", "no_commitment", "no_codebook_loss"),
    "codes": ("standard", "ema", "swapped"),
}


def learning(say: Say, steps: int = STEPS) -> Part:
    """Gradient norms per loss and learner, the pull of each loss on z, and eight variants of the model, trained.

    ``steps``: of each of the 24 runs. Source: van den Oord et al. 2017, eq. 3; the model is ``published.Published``.
    """
    say("who learns from what")
    model = trained()
    s = model(held_out(CROP, 64))
    # In place of argmin the codes are mixed: now distances matter.
    mixed = model.code.unflatten(torch.softmax(-s.distances, 1) @ model.codebook, s.z.shape)
    softly = (model.decoder(mixed) - s.x).square().mean()
    histories = train_all(VARIANTS, say, steps)
    usual = histories[STANDARD.name]
    start, end = (sorted(run["cosine"][i] for run in usual) for i in (0, -1))
    facts = {
        "norms": {loss: _norms(getattr(s, loss), model, s) for loss in LOSSES},
        "softmax": _norms(softly, model, s),
        "layer": _in_one_function(model, s),
        "pull": {loss: _pull(getattr(s, loss), s) for loss in LOSSES},
        "over_time": {"start": start, "end": end, "said": _said(end)},
        "steps": steps,
        "variants": {
            v.name: {"title": v.title, "code": v.code, **verdict(histories[v.name], usual), "runs": histories[v.name]}
            for v in VARIANTS
        },
    }
    titles, figures = {v.name: v.title for v in VARIANTS}, {}
    for name, group in GROUPS.items():
        charts = (
            line_chart(
                [_series(titles[variant], histories[variant], measure) for variant in group],
                Linear() if measure == "perplexity" else Log(),
                title=title,
                x_label="step",
            )
            for measure, title in MEASURES.items()
        )
        figures[name] = tag("div", {"class": "charts"}, *charts)
    asked = _series("reconstruction", usual, "cosine")
    lines = [asked, Series("commitment", asked.x, [1.0] * len(asked.x))]
    cosine = line_chart(lines, Linear(), title="Cosine of the step on z with e \N{MINUS SIGN} z", x_label="step")
    figures["pull"] = tag("div", {"class": "charts"}, cosine)
    return Part("learning", "Which loss trains what", facts, _tables(facts), figures)


def _norms(loss: Tensor, model: Published, s: Steps) -> dict[str, dict[str, Any]]:
    learners: dict[str, list[Tensor]] = {
        "encoder": list(model.encoder.parameters()),
        "codebook": [model.codebook],
        "decoder": list(model.decoder.parameters()),
        "distances": [s.distances],
    }
    return {name: route(loss, tensors)._asdict() for name, tensors in learners.items()}


def _in_one_function(model: Published, s: Steps) -> dict[str, dict[str, Any]]:
    """The same losses through ``VectorQuantizer``, which is one autograd function of z and the codebook."""
    vq = VectorQuantizer(DIM, CODES, commitment=BETA, start=Given(model.codebook.detach()), seed=0)
    z = s.z_flat.detach().requires_grad_()
    z_q, _, losses = vq(z)
    reconstruction = (model.decoder(model.code.unflatten(z_q, s.z.shape)) - s.x).square().mean()
    terms = zip(LOSSES, (reconstruction, losses.codebook, losses.commitment), strict=True)
    return {loss: {"z": route(t, [z])._asdict(), "codebook": route(t, [vq.codebook])._asdict()} for loss, t in terms}


def _pull(loss: Tensor, s: Steps) -> dict[str, float] | None:
    """The cosine of minus the loss's gradient at z with e - z, over the vectors; None where no gradient gets to z."""
    (gradient,) = gradients(loss, [s.z_flat])
    if gradient is None:
        return None
    cosine = pull(gradient, s.z_flat.detach(), s.e_k.detach()).double()
    found = {
        "mean": cosine.mean(),
        "least": cosine.min(),
        "greatest": cosine.max(),
        "towards": (cosine > 0).float().mean(),
    }
    return {name: float(value) for name, value in found.items()}


def _said(cosines: Sequence[float]) -> str:
    """Which way the reconstruction loss asks z to go; a cosine within 0.1 of 0 in one seed is no way."""
    if cosines[-1] < -0.1:
        return "away from its code"
    return "towards its code" if cosines[0] > 0.1 else "neither to its code nor away from it"


def _series(title: str, runs: Sequence[History], measure: str) -> Series:
    """The middle of the seeds, and the band from the least to the greatest."""
    moments = zip(*(run[measure] for run in runs), strict=True)
    low, middle, high = zip(*map(sorted, moments), strict=True)
    return Series(title, runs[0]["step"], middle, low=low, high=high)


def _tables(facts: dict[str, Any]) -> dict[str, Table]:
    def cells(found: dict[str, dict[str, Any]]) -> list[str]:
        return [str(Route(**route)) for route in found.values()]

    norms = [(loss, *cells(found)) for loss, found in facts["norms"].items()]
    norms.append(("reconstruction, codes mixed by softmax", *cells(facts["softmax"])))
    layer = [(loss, *cells(found)) for loss, found in facts["layer"].items()]
    pulls = [(loss, *found.values()) for loss, found in facts["pull"].items() if found]
    finals = [
        (
            v["title"],
            *(f"{number(band[0])} to {number(band[-1])}" for band in v["final"].values()),
            "" if name == STANDARD.name else "yes" if v["breaks"] else "no",
        )
        for name, v in facts["variants"].items()
    ]
    learners = tuple(facts["softmax"])
    return {
        "norms": Table("Gradient norm that each loss gives to each learner", ("loss", *learners), norms),
        "layer": Table("The same in one autograd function", ("loss", "z", "codebook"), layer),
        "pull": Table(
            "Cosine of each loss's step on z with e - z", ("loss", "mean", "least", "greatest", "share above 0"), pulls
        ),
        "variants": Table(
            "After training: least to greatest of three seeds",
            ("variant", "error", "perplexity", "z to its code", "z to its mean", "breaks"),
            finals,
        ),
    }
