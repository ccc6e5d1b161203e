"""PyTorch. Its compiled forms have a law of their own (19, in tests/contract)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vqkit
from tests.frameworks.adapter import Forward, Gradients, Trained
from tests.frameworks.trainer import BETA_1, BETA_2, EPS

forms = ("eager",)
dtypes = ("float32", "float64")
halves = ("float16", "bfloat16")
revives = ("gradient", "ema")


class TorchQuantizer:
    def __init__(self, vq: vqkit.VectorQuantizer) -> None:
        self.vq = vq

    @property
    def native(self) -> vqkit.VectorQuantizer:
        return self.vq

    def set_codebook(self, codes: np.ndarray) -> None:
        self.vq.set_codebook(codes)

    def forward(
        self,
        z: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        training: bool = False,
        form: str = "eager",
        cast: str | None = None,
    ) -> Forward:
        z_q, indices, losses = self.vq.train(training)(_tensor(z, cast), _tensor(mask))
        values = (losses.codebook.item(), losses.commitment.item(), losses.total.item())
        return Forward(_array(z_q), indices.numpy(), *values, str(z_q.dtype).removeprefix("torch."))

    def gradients(
        self,
        z: np.ndarray,
        g: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        form: str = "eager",
        cast: str | None = None,
    ) -> Gradients:
        tensor = _tensor(z, cast).requires_grad_()
        self.vq.train().zero_grad()
        z_q, _, losses = self.vq(tensor, _tensor(mask))
        ((z_q * _tensor(g, cast)).sum() + losses.total).backward()
        vqkit.discard(self.vq)
        codes = self.vq.codebook.grad if self.vq.update.by_gradient else torch.zeros_like(self.vq.codebook)
        return Gradients(_array(tensor.grad), _array(codes))

    def learn(
        self, z: np.ndarray, mask: np.ndarray | None = None, *, form: str = "eager", cast: str | None = None
    ) -> None:
        self.vq.train()(_tensor(z, cast).requires_grad_(), _tensor(mask)).loss.backward()
        vqkit.step(self.vq)

    def encode(self, z: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return self.vq.encode(torch.tensor(z), _tensor(mask)).numpy()

    def decode(self, indices: np.ndarray) -> np.ndarray:
        return _array(self.vq.decode(torch.tensor(indices)))

    def state(self) -> dict[str, np.ndarray]:
        return {name: _array(getattr(self.vq, name)).copy() for name in ("codebook", "n", "usage", "idle")}

    def reloaded(self, directory: Path) -> TorchQuantizer:
        save_file(self.vq.state_dict(), directory / "vq.safetensors")
        slots = {name: getattr(self.vq, name) for name in ("update", "estimator", "commitment", "revival")}
        fresh = vqkit.VectorQuantizer(self.vq.dim, self.vq.codebook_size, **slots).to(self.vq.codebook.dtype)
        fresh.load_state_dict(load_file(directory / "vq.safetensors"))
        return TorchQuantizer(fresh)


def make(
    codes: np.ndarray,
    *,
    update: Any = vqkit.Gradient(),
    estimator: Any = vqkit.StraightThrough(),
    commitment: float = 0.25,
    revival: Any = vqkit.NoRevival(),
    n: Any = 1.0,
    dtype: str = "float32",
) -> TorchQuantizer:
    given = vqkit.Given(codes.astype(dtype), n)
    slots = {"update": update, "estimator": estimator, "commitment": commitment, "revival": revival, "start": given}
    return TorchQuantizer(vqkit.VectorQuantizer(codes.shape[1], len(codes), **slots, seed=0))


def train(
    codes: np.ndarray,
    weights: dict[str, np.ndarray],
    batches: list[tuple[np.ndarray, np.ndarray]],
    *,
    update: Any,
    estimator: Any,
    optimizer: str,
    rate: float,
    dtype: str,
) -> Trained:
    vq = make(codes, update=update, estimator=estimator, dtype=dtype).vq
    parts = {}
    for name in ("encoder", "decoder"):
        weight = torch.tensor(weights[name].T.astype(dtype))
        parts[name] = torch.nn.Linear(*weights[name].shape, dtype=weight.dtype)
        parts[name].weight.data, parts[name].bias.data = weight, torch.tensor(weights[f"{name}_bias"].astype(dtype))
    model = torch.nn.ModuleDict({**parts, "vq": vq})
    of = list(model.parameters())
    stepped = torch.optim.SGD(of, lr=rate) if optimizer == "sgd" else torch.optim.Adam(of, rate, (BETA_1, BETA_2), EPS)
    vqkit.attach(stepped, model)
    for x, target in batches:
        z_q, _, losses = vq(parts["encoder"](torch.tensor(x.astype(dtype))))
        y = parts["decoder"](z_q)
        loss = torch.nn.functional.mse_loss(y, torch.tensor(target.astype(dtype))) + losses.total
        stepped.zero_grad()
        loss.backward()
        stepped.step()
    found = {name: _array(part.weight).T for name, part in parts.items()}
    found |= {f"{name}_bias": _array(part.bias) for name, part in parts.items()}
    return Trained(_array(vq.codebook), found)


def _tensor(array: np.ndarray | None, dtype: str | None = None) -> Any:
    return None if array is None else torch.tensor(array, dtype=dtype and getattr(torch, dtype))


def _array(tensor: Tensor) -> np.ndarray:
    """In float32 of a half precision."""
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).detach().numpy()
