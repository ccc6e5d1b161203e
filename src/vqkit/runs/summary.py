"""A run as its report shows it, made anew from its directory."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vqkit.data import Images, Pictures, open_images
from vqkit.models import VQVAE
from vqkit.models.storage import read_config
from vqkit.report import Comparison, RunSummary, write_comparison, write_report
from vqkit.training import Figures, atlas, decibels, evaluate, read_metrics, reconstruct

# Evaluating more training images than this would take longer than it tells; they are taken evenly from all.
_MOST_TRAINING_IMAGES = 500
_SHOWN = 8


def evaluate_splits(model: VQVAE, images: Images) -> tuple[dict[str, Figures], torch.Tensor]:
    """Figures on the held-out images, if there are any, and on the training images; and the latter's counts."""
    every = -(-len(images.images) // _MOST_TRAINING_IMAGES)
    training, counts = evaluate(model, (image for _, image in images.images.readable(every)))
    held_out = (image for _, image in images.held_out.readable())
    spared = {"held out": evaluate(model, held_out)[0]} if images.held_out else {}
    return {**spared, "training": training}, counts


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB, of two images of 8 bits."""
    return decibels(float(np.mean((a.astype(np.float64) - b) ** 2)) / 255**2)


def images_of_run(directory: Path) -> Images:
    """The images that a run was trained on, where they were then."""
    entries = read_config(directory)
    if "data" not in entries or "training" not in entries:
        raise ValueError(f"{directory} holds a model without its training: name a run that vqkit train left, or DATA.")
    source = entries["data"]
    if source is not None and not os.path.exists(source):
        raise FileNotFoundError(
            f"{directory} was trained on {source}, which is gone: vqkit train --resume {directory} DATA keeps the new "
            f"place, vqkit eval or trace {directory} DATA measures on any."
        )
    return open_images(source)


def report_runs(run: str | os.PathLike[str], second: str | os.PathLike[str] | None = None) -> Path:
    """Makes the report of a run anew, or one of two runs side by side, both on the images of the first; its path."""
    first = Path(run)
    images = images_of_run(first)
    if second is None:
        page = first / "report.html"
        write_report(page, _measured(first, images))
        return page
    other = Path(second)
    kinds = [read_config(directory).get("model", {}).get("channels") for directory in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{first} has images of {kinds[0]} channels and {other} of {kinds[1]}: compare runs of one kind."
        )
    page = first / f"report-beside-{other.resolve().name}.html"
    write_comparison(page, _measured(first, images), _measured(other, images))
    return page


def _measured(directory: Path, images: Images) -> RunSummary:
    model = VQVAE.from_pretrained(directory)
    return summarise(directory, model, images, *evaluate_splits(model, images))


def summarise(
    directory: Path, model: VQVAE, images: Images, figures: dict[str, Figures], counts: torch.Tensor
) -> RunSummary:
    """What the report of a run shows."""
    entries, rows = read_config(directory), read_metrics(directory / "metrics.jsonl")
    comparisons: list[Comparison] = []
    splits: tuple[tuple[Literal["held out", "training"], Pictures], ...]
    splits = ("held out", images.held_out), ("training", images.images)
    # Spread evenly, because data are often sorted by what they show.
    spread = ((split, one) for split, of in splits for one in of.readable(max(1, len(of) // _SHOWN)))
    for split, (name, image) in islice(spread, _SHOWN):
        restored, _ = reconstruct(model, image)
        comparisons.append(Comparison(name, image, restored, psnr(image, restored), split))
    measured, first = next(iter(figures.items()))
    steps = [0, *(int(row["step"]) for row in rows)]
    batch = entries["training"]["batch"]
    shown: dict[str, Any] = {
        "PSNR (dB)": first.psnr,
        "SSIM": first.ssim,
        "MSE": first.mse,
        "NMSE": first.nmse,
        "bits per pixel": first.bits_per_pixel,
        "codes used (%)": 100 * figures["training"].usage,
        "perplexity": figures["training"].perplexity,
        "PSNR on training images (dB)": figures["training"].psnr,
        "training images": len(images.images),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps[-1],
        "seconds of training": round(
            sum(batch * (b - a) / row["images_per_second"] for a, b, row in zip(steps, steps[1:], rows, strict=False)),
            1,
        ),
    }
    return RunSummary(
        name=str(directory),
        title=f"A VQ-VAE and its codes: {directory.resolve().name}",
        subtitle=f"Measured on {images.description}: errors on {measured} images, codes counted over training images.",
        config={"training": entries["training"], "model": entries["model"]},
        metrics=rows,
        comparisons=comparisons,
        counts=counts.numpy(),
        atlas=atlas(model),
        figures={name: value for name, value in shown.items() if value is not None},
        provenance={
            "vqkit": entries["vqkit"],
            "torch": torch.__version__,
            "hardware": ", ".join(f"{name} {value}" for name, value in entries.get("hardware", {}).items() if value),
            "threads": torch.get_num_threads(),
            "data": entries["data"] or "the bundled photos",
        },
    )
