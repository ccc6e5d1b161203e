"""The plain VQ-VAE with one thing changed, each trained from the same starts and measured as it learns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqkit.codebooks import EMA, Gradient, Update
from vqkit.data import RandomCrops
from vqkit.functional.kmeans import kmeans
from vqkit.functional.statistics import count_codes, perplexity
from vqkit.gradients.explain.parts import Say
from vqkit.gradients.explain.published import BETA, CODES, CROP, DIM, Code, Published, held_out, photos
from vqkit.gradients.routes import gradients
from vqkit.pages import number

SEEDS, STEPS, MOMENTS, BATCH = (0, 1, 2), 200, 10, 8  # a run is measured at its start and MOMENTS times later
MEASURES = {
    "error": "Mean squared error",
    "perplexity": "Perplexity of the codes",
    "distance": "Distance of z to its code",
    "spread": "Distance of z to its mean",
}
History = dict[str, list[float]]  # a list over the moments for "step", "cosine", "moved" and each of MEASURES

# What the decoder is given, of z and its code e; sg is detach.
THROUGH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z + sg(e - z)": lambda z, e: z + (e - z).detach(),
    "sg(e)": lambda z, e: e.detach(),
    "e": lambda z, e: e,
}


@dataclass(frozen=True)
class Variant:
    """``loss = mean (x - x_hat)^2 + codebook mean (sg(z) - e)^2 + commitment mean (z - sg(e))^2``.

    ``through`` names one of ``THROUGH``; ``update`` is what else moves the codes.
    """

    name: str
    title: str
    through: str = "z + sg(e - z)"
    codebook: float = 1.0
    commitment: float = BETA
    update: Update = Gradient()

    @property
    def code(self) -> str:
        weighted = {"mean (sg(z) - e)²": self.codebook, "mean (z - sg(e))²": self.commitment}
        terms = (term if w == 1 else f"{w:g} {term}" for term, w in weighted.items() if w)
        by_average = f"; e by {self.update}" if self.update.needs_sums else ""
        return f"z_q = {self.through}; loss = {' + '.join(['mean (x - x_hat)²', *terms])}{by_average}"


STANDARD = Variant("standard", "standard")
NO_CODEBOOK_LOSS = Variant("no_codebook_loss", "no codebook loss", codebook=0)
NO_COMMITMENT = Variant("no_commitment", "no commitment", commitment=0)
VARIANTS = (
    STANDARD,
    Variant("stopped", "z_q = sg(e)", "sg(e)"),
    Variant("unstopped", "z_q = e", "e"),
    Variant("commitment_only", "commitment only", "sg(e)", codebook=0),
    NO_COMMITMENT,
    NO_CODEBOOK_LOSS,
    Variant("ema", "EMA", codebook=0, update=EMA(0.99)),
    Variant("swapped", "beta swapped", codebook=BETA, commitment=1),
)


def train_all(
    variants: Sequence[Variant], say: Say, steps: int = STEPS, seeds: Sequence[int] = SEEDS
) -> dict[str, list[History]]:
    """The history of each variant from each seed. Threads share the cores: operators let go of Python's lock."""
    # Modules draw their weights from the global generator, so they are built here, in one thread and in order.
    jobs = [(variant, seed, _started(variant, seed), steps) for variant in variants for seed in seeds]
    histories: dict[str, list[History]] = {variant.name: [] for variant in variants}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores) as pool:
            for i, (job, history) in enumerate(zip(jobs, pool.map(lambda job: _train(*job), jobs), strict=True), 1):
                histories[job[0].name].append(history)
                say(f"variants of the model: {i} of {len(jobs)} trained")
    finally:
        torch.set_num_threads(threads)
    return histories


def _started(variant: Variant, seed: int) -> Published:
    """Its codes begin as k-means of what the untrained encoder makes of 64 crops."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Published(Code(through=THROUGH[variant.through]))
        z = model.code.flatten(model.encoder(RandomCrops(photos().images, CROP, 64, seed).batch_at(STEPS)))
        rng = torch.Generator().manual_seed(seed)
        model.codebook.copy_(kmeans(z, torch.ones(len(z)), CODES, 10, rng)[0])
    return model


@torch.enable_grad()  # a thread has its own mode
def _train(variant: Variant, seed: int, model: Published, steps: int) -> History:
    crops, seen = RandomCrops(photos().images, CROP, BATCH, seed), held_out(CROP, 32)
    start, n = model.codebook.detach().clone(), torch.ones(CODES)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    moments = []
    for step in range(steps + 1):
        if step % max(1, steps // MOMENTS) == 0:
            moments.append({"step": float(step), **_measured(model, seen, start)})
        s = model(crops.batch_at(step))
        optimizer.zero_grad()
        (s.reconstruction + variant.codebook * s.codebook + variant.commitment / BETA * s.commitment).backward()
        optimizer.step()
        with torch.no_grad():
            sums = torch.zeros(CODES, DIM).index_add_(0, s.k, s.z_flat - s.e_k)
            moved, n = variant.update.step(model.codebook, n, count_codes(s.k, CODES).float(), sums, torch)
            model.codebook.copy_(moved)
    return {name: [moment[name] for moment in moments] for name in moments[0]}


def _measured(model: Published, x: Tensor, start: Tensor) -> dict[str, float]:
    """On crops that are never trained on; distances as root mean squares over the vectors."""
    s = model(x)
    (gradient,) = gradients(s.reconstruction, [s.z_flat])
    z, e = s.z_flat.detach(), s.e_k.detach()
    far = {"distance": z - e, "spread": z - z.mean(0)}
    return {
        "error": s.reconstruction.item(),
        "perplexity": perplexity(count_codes(s.k, CODES)),
        **{name: float(rows.square().sum(1).mean().sqrt()) for name, rows in far.items()},
        "cosine": 0.0 if gradient is None else float(pull(gradient, z, e).mean()),
        "moved": float((model.codebook.detach() - start).abs().max()),
    }


def pull(gradient: Tensor, z: Tensor, e: Tensor) -> Tensor:
    """The cosine, for each vector, of the step that a gradient at z asks for with the way from z to its code."""
    return torch.cosine_similarity(-gradient, e - z, dim=1, eps=1e-30)


def verdict(runs: Sequence[History], standard: Sequence[History]) -> dict[str, Any]:
    """What became of a variant: its final measures beside the standard's, as bands from least to greatest of the seeds.

    "worse": its least error is above the standard's greatest; "better": its greatest is below the least; else "alike".
    It breaks where it is worse by twice or more, in the middle of the seeds, or where z runs away: ends more than ten
    times as far from its code as in any run of the standard.
    """
    final, usual = ({m: sorted(run[m][-1] for run in group) for m in MEASURES} for group in (runs, standard))
    error, norm = final["error"], usual["error"]
    kind = "worse" if error[0] > norm[-1] else "better" if error[-1] < norm[0] else "alike"
    ratio, far = error[len(error) // 2] / norm[len(norm) // 2], final["distance"][0] / usual["distance"][-1]
    breaks = (kind == "worse" and ratio >= 2) or far > 10
    said = {
        "worse": f"every seed ends above every seed of the standard, in the middle at {ratio:.3g} times its error.",
        "better": f"every seed ends below every seed of the standard, in the middle at {ratio:.3g} times its error.",
        "alike": f"its final errors overlap with the standard's, in the middle {ratio:.3g} times as large.",
    }[kind]
    if final["perplexity"][-1] < usual["perplexity"][0]:
        said += f" It uses fewer codes: perplexity {final['perplexity'][-1]:.1f} at most."
    if far > 10:
        said += f" z runs away: it ends at least {number(far)} times as far from its code."
    said = f"It {'breaks' if breaks else 'does not break'}: {said}"
    return {"final": final, "kind": kind, "breaks": breaks, "runs_away": far > 10, "verdict": said}
