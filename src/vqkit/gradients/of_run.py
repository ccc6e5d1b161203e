"""The trace of a run that ``vqkit train`` left."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from vqkit.data import RandomCrops, open_images
from vqkit.gradients.table import Trace
from vqkit.gradients.trace import measure
from vqkit.models import VQVAE, ModelConfig
from vqkit.models.storage import read_config
from vqkit.runs.summary import images_of_run
from vqkit.training import Config


def trace_run(run: str | os.PathLike[str], data: str | os.PathLike[str] | None = None) -> tuple[Trace, str]:
    """What each loss of a run gives to its encoder, quantizer and decoder, on one batch; and what moves its codes.

    The batch is one of the run's own size, of its images or of ``data``.
    """
    directory = Path(run)
    model = VQVAE.from_pretrained(directory).train()
    images = images_of_run(directory) if data is None else open_images(data)
    entries = read_config(directory)
    if model.config is not None and images.channels != model.config.channels:
        raise ValueError(
            f"{data} has images of {images.channels} channels, but {directory} was trained on images of "
            f"{model.config.channels}: name others, or none."
        )
    trained = {**Config().to_json(), **entries.get("training", {})}
    images = images.for_crops(trained["crop"])
    x = RandomCrops(images.images, trained["crop"], trained["batch"], trained["seed"]).batch_at(0)
    variance = images.variance()

    def reconstruction(z_q: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(model.decoder(z_q), x) / variance

    z = model.encoder(x)
    z_q, _, terms = model.quantizer(z)
    losses = {"reconstruction": reconstruction(z_q), "codebook": terms.codebook, "commitment": terms.commitment}
    update = ModelConfig.from_json(entries["model"]).update
    learns = "learns from statistics" if update.needs_sums else "does not learn"
    moved = "moved by its loss" if update.by_gradient else f"{update}, which {learns}; no loss reaches it"
    live = {name: loss for name, loss in losses.items() if loss.requires_grad}
    return measure(live, model, z=z, loss_of=reconstruction), moved
