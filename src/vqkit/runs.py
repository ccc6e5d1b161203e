"""What the commands do, as functions: a run is a directory that ``train`` leaves and the others read."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vqkit
from vqkit.data import Images, RandomCrops, open_images
from vqkit.models import VQVAE
from vqkit.models.vqvae import FORMAT, read_config, write_json
from vqkit.report import Comparison, RunSummary, write_report
from vqkit.training import (
    RECIPES,
    Config,
    Figures,
    Progress,
    Silent,
    atlas,
    decibels,
    evaluate,
    fit,
    reconstruct,
)

# Evaluating more training images than this would take longer than it tells; they are taken evenly from all.
_MOST_TRAINING_IMAGES = 500
_SHOWN = 8


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, the trained model in evaluation mode, and the figures by split."""

    directory: Path
    model: VQVAE
    figures: dict[str, Figures]
    steps: int
    seconds: float

    @property
    def report(self) -> Path:
        return self.directory / "report.html"


def train(
    config: Config = RECIPES["photos"],
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    images: Images | None = None,
) -> Run:
    """Trains a VQ-VAE; leaves ``config.json``, ``model.safetensors``, ``metrics.jsonl``, ``report.html`` in ``out``.

    Args:
        config: what to train; ``vqkit.training.resolve("photos", ["steps=500"])`` makes one from a recipe.
        data: a folder of images, an image, ``.npy``, ``.npz`` or an idx file; None trains on the bundled photos.
        out: a directory that is empty or not there yet; None takes the first free ``runs/N``.
        progress: how the run shows itself; None shows nothing.
        images: ``open_images(data)``, where that was called already.

    Raises:
        ValueError: data that cannot be used.
        FileExistsError: ``out`` holds files already; nothing is overwritten.
        Diverged: the loss is no longer a number.
    """
    images = open_images(data) if images is None else images
    config = replace(config, model=replace(config.model, channels=images.images[0].shape[2]))
    crops = RandomCrops(
        images.images,
        size=config.crop,
        batch=config.batch,
        seed=config.seed,
        augment=(config.augmentation,),
        names=images.names,
        multiple=config.model.architecture.stride,
    )
    torch.manual_seed(config.seed)
    model = config.model.build(seed=config.seed)
    directory = _output(out)
    began = time.monotonic()
    entries: dict[str, Any] = {
        "format": FORMAT,
        "vqkit": vqkit.__version__,
        "data": None if data is None else os.path.abspath(data),
        "training": config.to_json(),
        "model": config.model.to_json(),
    }
    write_json(directory / "config.json", entries)
    with open(directory / "metrics.jsonl", "w", encoding="utf-8") as metrics:
        rows: list[dict[str, float]] = []

        def log(row: dict[str, float]) -> None:
            rows.append(row)
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()

        steps = fit(model, crops, _variance(images.images), config, progress or Silent(), log)
    model.eval()
    model.save_pretrained(directory)
    figures, counts = evaluate_splits(model, images)
    run = Run(directory, model, figures, steps, time.monotonic() - began)
    write_report(run.report, _summary(run, entries, rows, images, counts))
    return run


def evaluate_run(
    run: str | os.PathLike[str], data: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Figures], Images]:
    """The figures of a run on ``data``, all of it; without it on what the run trained on and what it held out."""
    model = VQVAE.from_pretrained(run)
    if data is not None:
        images = open_images(data)
        figures, _ = evaluate(model, (*images.images, *images.held_out))
        return {"data": figures}, images
    trained_on = read_config(Path(run)).get("data")
    if trained_on is not None and not os.path.exists(trained_on):
        raise FileNotFoundError(f"{run} was trained on {trained_on}, which is gone: vqkit eval RUN DATA.")
    images = open_images(trained_on)
    return evaluate_splits(model, images)[0], images


def reconstruct_image(run: str | os.PathLike[str], image: str | os.PathLike[str], out: str | os.PathLike[str]) -> float:
    """Writes what the run's model makes of an image of any size as a PNG; the PSNR in dB.

    Raises:
        FileExistsError: ``out`` is there already.
        FileNotFoundError: no such run, image, or directory for ``out``.
        ValueError: ``image`` holds several.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists already and is not overwritten: choose another name.")
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(f"{Path(out).parent} is no directory to write into: make it first.")
    model = VQVAE.from_pretrained(run)
    images = open_images(image)
    if len(images.images) + len(images.held_out) > 1:
        raise ValueError(f"{image} holds {len(images.images) + len(images.held_out)} images: name one image.")
    original = images.images[0]
    if model.config is not None and original.shape[2] != model.config.channels:
        original = _with_channels(original, model.config.channels)
    restored, _ = reconstruct(model, original)
    png = BytesIO()
    Image.fromarray(restored.squeeze(2) if restored.shape[2] == 1 else restored).save(png, format="PNG")
    with open(out, "xb") as file:  # x: also where another program made it meanwhile
        file.write(png.getbuffer())
    return _psnr(original, restored)


def info() -> dict[str, str]:
    """Versions, devices, and which search is active."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "vqkit": vqkit.__version__,
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
        "search": "chunked PyTorch (float32 products, doubtful rows decided in float64)",
    }


def evaluate_splits(model: VQVAE, images: Images) -> tuple[dict[str, Figures], torch.Tensor]:
    """Figures on the held-out images, if there are any, and on the training images; and the latter's counts."""
    every = -(-len(images.images) // _MOST_TRAINING_IMAGES)
    training, counts = evaluate(model, images.images[::every])
    held_out = {"held out": evaluate(model, images.held_out)[0]} if images.held_out else {}
    return {**held_out, "training": training}, counts


def _output(out: str | os.PathLike[str] | None) -> Path:
    if out is None:
        return _next_free(Path("runs"))
    if not os.fspath(out):
        raise FileNotFoundError("--out is empty: name a directory, or leave it out for the next free runs/N.")
    directory = Path(out)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} holds files already and nothing is overwritten: choose another --out.")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _next_free(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    for number in itertools.count(1):
        with suppress(FileExistsError):  # two runs that begin at once get two directories
            (parent / str(number)).mkdir()
            break
    return parent / str(number)


def _variance(images: tuple[np.ndarray, ...]) -> float:
    """Of all pixels, with values in [0, 1]; an all-equal data set counts as 1, so that its error stays a number."""
    values = sum(image.size for image in images)
    mean = sum(float(image.sum(dtype=np.float64)) for image in images) / values
    variance = sum(float(((image - mean) ** 2).sum()) for image in images) / values / 255**2
    return variance if variance > 1e-12 else 1.0


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return decibels(float(np.mean((a.astype(np.float64) - b) ** 2)) / 255**2)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]


def _summary(
    run: Run, entries: dict[str, Any], rows: list[dict[str, float]], images: Images, counts: torch.Tensor
) -> RunSummary:
    """What the report shows."""
    shown = [(name, image, "held out") for name, image in zip(images.held_out_names, images.held_out, strict=True)]
    shown += [(name, image, "training") for name, image in zip(images.names, images.images, strict=True)]
    comparisons = []
    for name, image, split in shown[:_SHOWN]:
        restored, _ = reconstruct(run.model, image)
        comparisons.append(Comparison(name, image, restored, _psnr(image, restored), split))  # type: ignore[arg-type]
    first = next(iter(run.figures.values()))
    split = next(iter(run.figures))
    training = run.figures["training"]
    figures: dict[str, Any] = {
        "PSNR (dB)": first.psnr,
        "SSIM": first.ssim,
        "MSE": first.mse,
        "NMSE": first.nmse,
        "bits per pixel": first.bits_per_pixel,
        "codes used (%)": 100 * training.usage,
        "perplexity": training.perplexity,
        "PSNR on training images (dB)": training.psnr,
        "training images": len(images.images),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.steps,
        "seconds": round(run.seconds, 1),
    }
    return RunSummary(
        title="A VQ-VAE and its codes",
        subtitle=f"Trained on {images.description}. Errors on {split} images; codes counted over the training images.",
        config={"training": entries["training"], "model": entries["model"]},
        metrics=rows,
        comparisons=comparisons,
        counts=counts.numpy(),
        atlas=atlas(run.model),
        figures={name: value for name, value in figures.items() if value is not None},
        provenance={**info(), "data": entries["data"] or "the bundled photos"},
    )
