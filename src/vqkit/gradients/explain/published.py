"""The plain published VQ-VAE, each step of its forward pass by name, trained a little on the bundled photos."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqkit.data import Images, RandomCrops, open_images
from vqkit.functional.kmeans import kmeans
from vqkit.models import PatchDecoder, PatchEncoder, Patchwise

DIM, CODES, BETA = 8, 64, 0.25
CROP, BATCH, STEPS = 32, 8, 200


# What one forward pass computes, in order. x and x_hat are (B, 3, 4H, 4W), z and z_q (B, D, H, W); N = BHW vectors:
# z_flat, e_k and z_q_flat are (N, D), distances (N, K), k (N,). Then three losses.
Steps = namedtuple("Steps", "x z z_flat distances k e_k z_q_flat z_q x_hat reconstruction codebook commitment")


def permuted(z: Tensor) -> Tensor:
    """(B, D, H, W) to (BHW, D): channels last, then flat."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def permuted_back(flat: Tensor, shape: torch.Size) -> Tensor:
    return flat.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def straight(z: Tensor, q: Tensor) -> Tensor:
    return z + (q - z).detach()


@dataclass(frozen=True)
class Code:
    """What is published in more than one way: how z becomes rows and rows become z_q, and what the decoder is given."""

    flatten: Callable[[Tensor], Tensor] = permuted
    unflatten: Callable[[Tensor, torch.Size], Tensor] = permuted_back
    through: Callable[[Tensor, Tensor], Tensor] = straight


class Published(nn.Module):
    """Squared distances by expansion, argmin, a gather, the straight-through line, and the three losses as means."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        sizes = Patchwise(hidden=32, encoder_blocks=1, decoder_blocks=1)
        self.encoder, self.decoder = PatchEncoder(3, DIM, sizes), PatchDecoder(3, DIM, sizes)
        self.codebook = nn.Parameter(torch.empty(CODES, DIM))

    def forward(self, x: Tensor) -> Steps:
        e = self.codebook
        z = self.encoder(x)
        z_flat = self.code.flatten(z)
        distances = z_flat.square().sum(1, keepdim=True) - 2 * z_flat @ e.T + e.square().sum(1)
        k = distances.argmin(1)
        e_k = F.embedding(k, e)
        z_q_flat = self.code.through(z_flat, e_k)
        z_q = self.code.unflatten(z_q_flat, z.shape)
        x_hat = self.decoder(z_q)
        reconstruction = (x_hat - x).square().mean()
        codebook = (e_k - z_flat.detach()).square().mean()
        commitment = BETA * (z_flat - e_k.detach()).square().mean()
        return Steps(x, z, z_flat, distances, k, e_k, z_q_flat, z_q, x_hat, reconstruction, codebook, commitment)


@cache
def photos() -> Images:
    return open_images(None)


def held_out(size: int, count: int) -> Tensor:
    """Crops of the bundled photo that nothing was trained on."""
    return RandomCrops(photos().held_out, size, count, seed=1).batch_at(0)


@cache
@torch.enable_grad()
def trained(code: Code = Code()) -> Published:
    """200 steps of Adam, at a rate that falls to zero; the same weights at first, and images, for every ``code``.

    The first two fifths of the steps go without a quantizer; then k-means of the vectors starts the codebook.
    """
    crops = RandomCrops(photos().images, CROP, BATCH, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Published(code)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    start = STEPS * 2 // 5
    for step in range(STEPS):
        x = crops.batch_at(step)
        if step == start:
            with torch.no_grad():
                z = code.flatten(model.encoder(torch.cat([crops.batch_at(STEPS + i) for i in range(8)])))
                rng = torch.Generator().manual_seed(0)
                model.codebook.copy_(kmeans(z, torch.ones(len(z)), CODES, 10, rng)[0])
        if step < start:
            loss = F.mse_loss(model.decoder(model.encoder(x)), x)
        else:
            loss = sum(model(x)[-3:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return model
