"""What is done with a trained run: measure it, reconstruct with it; and what this installation is."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import packages_distributions, version
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vqkit
from vqkit.data import Images, open_images
from vqkit.functional import native
from vqkit.models import VQVAE
from vqkit.runs.summary import evaluate_splits, images_of_run, psnr
from vqkit.training import Figures, evaluate, reconstruct


def evaluate_run(
    run: str | os.PathLike[str], data: str | os.PathLike[str] | None = None
) -> tuple[dict[str, Figures], Images]:
    """The figures of a run on ``data``, all of it; without it on what the run trained on and what it held out."""
    model = VQVAE.from_pretrained(Path(run))
    if data is not None:
        images = open_images(data)
        every = chain(images.images.readable(), images.held_out.readable())
        figures, _ = evaluate(model, (image for _, image in every))
        return {"data": figures}, images
    images = images_of_run(Path(run))
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
    model = VQVAE.from_pretrained(Path(run))
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
    return psnr(original, restored)


def info() -> dict[str, str]:
    """Versions, devices, and which search is active."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    installed = packages_distributions()  # TensorFlow has several distributions
    beside = [f"{name} {version(installed[name][0])}" for name in ("keras", "tensorflow", "jax") if name in installed]
    built = native.instructions()
    return {
        "vqkit": vqkit.__version__,
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "beside": ", ".join(beside) or "no Keras, no JAX",
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
        "search": f"C++, for {built} instructions" if built else "PyTorch, in chunks (the C++ library is missing)",
    }


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
