"""A small model that trains, and how its state is compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import vqkit
from tests.zoo import Case, vectors

DIM, CODES, TOKENS = 8, 16, 64


class Model(nn.Module):
    """An encoder before a quantizer."""

    def __init__(self, vq: vqkit.Quantizer) -> None:
        super().__init__()
        self.encoder, self.vq = nn.Linear(vq.dim, vq.dim), vq
        with torch.no_grad():
            self.encoder.weight.copy_(torch.eye(vq.dim) + 0.1 * vectors(vq.dim, vq.dim, seed=3))
            self.encoder.bias.zero_()

    def forward(self, x: Tensor) -> vqkit.Quantized:
        return self.vq(self.encoder(x))


def objective(out: vqkit.Quantized) -> Tensor:
    return out.z_q.square().mean() + out.losses.total


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """The entries whose bits differ."""
    return [name for name in before if not torch.equal(before[name], after[name])]


def fresh(case: Case, **slots) -> vqkit.Quantizer:
    """A new quantizer with the slots of the case's, which has not started where the start needs data."""
    vq = case.make()
    kept = {name: getattr(vq, name) for name in ("update", "estimator", "commitment", "start", "revival")}
    return type(vq)(vq.dim, vq.codebook_size, **{**kept, "seed": 0, **slots})


def unrevived(case: Case, **shape: int) -> vqkit.Quantizer:
    """The case's quantizer without revival, which would move codes that a reference of the update leaves alone."""
    vq = case.make(**shape)
    vq.revival = vqkit.NoRevival()
    return vq


def train(vq: vqkit.Quantizer, *batches: Tensor) -> None:
    """One step on the micro-batches."""
    for batch in batches:
        objective(vq(batch.clone().requires_grad_())).backward()
    vqkit.step(vq)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def close(actual: Tensor, expected: np.ndarray | Tensor, message: str) -> None:
    """To rounding in float32, against the largest entry."""
    expected = array(expected) if isinstance(expected, Tensor) else expected
    error = np.abs(array(actual) - expected).max(initial=0.0)
    assert error <= 1e-5 * max(1.0, np.abs(expected).max(initial=0.0)), f"{message} (off by {error:.2g})"
