"""Everything that a run needs to go on as if it had never stopped: one safetensors file, whole or not there."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vqkit.models import VQVAE
from vqkit.models.storage import FORMAT, replace_file

_KEPT = 2


class Checkpoints:
    """The last two checkpoints of a run, ``DIRECTORY/checkpoints/STEP.safetensors``.

    A file holds the model's state, the optimizer's and the random generator's; its metadata the step, the gradient
    scaler's numbers, and a SHA-256 of it all, so that a file that was cut or altered is recognised.
    """

    def __init__(
        self, directory: Path, model: VQVAE, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.directory = directory / "checkpoints"
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def save(self, step: int) -> None:
        """Writes the model for whoever wants to look, then a checkpoint, and removes all checkpoints but the last two.

        Raises:
            OSError: the disk is full or cannot be written; what was saved before stays.
        """
        self.model.save_pretrained(self.directory.parent)  # first: after a kill the next checkpoint mends what is ahead
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        metadata = {
            "format": str(FORMAT),
            "step": str(step),
            "scaler": json.dumps(self.scaler.state_dict()),
        }
        metadata["sha256"] = _digest(tensors, metadata)
        replace_file(self.directory / f"{step:08}.safetensors", save(tensors, metadata))
        for path in self._paths()[:-_KEPT]:
            path.unlink(missing_ok=True)

    def restore(self) -> int:
        """Loads the last checkpoint that is whole and returns its step; 0 where there is none.

        A damaged one is renamed to ``*.damaged`` with a warning, and the one before is taken.

        Raises:
            ValueError: a checkpoint of a newer format, or of another model.
        """
        for path in reversed(self._paths()):
            try:
                metadata, tensors = _read(path)
            except (SafetensorError, KeyError, json.JSONDecodeError) as error:
                path.rename(path.with_suffix(".damaged"))
                warnings.warn(
                    f"{path} is damaged ({error}) and was set aside: going on from the one before, or the beginning.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            self._load(path, tensors)
            if scale := json.loads(metadata["scaler"]):  # empty where the run was not in float16 until now
                self.scaler.load_state_dict(scale)
            return int(metadata["step"])
        return 0

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*.safetensors"))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, memory in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in memory.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        return tensors

    def _load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise ValueError(f"{path} does not fit the model in config.json ({reason}).") from None
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        memories: dict[int, dict[str, Any]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, what = name.partition(".")
            like = parameters[int(index)]
            # In the parameter's own layout in memory, as the optimizer made it.
            laid_out = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            memories.setdefault(int(index), {})[what] = laid_out
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": memories})
        torch.set_rng_state(parts["random"]["cpu"])


def last_step(directory: Path) -> int:
    """The step of the last checkpoint of a run; 0 where there is none."""
    return max((int(path.stem) for path in (directory / "checkpoints").glob("*.safetensors")), default=0)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if (version := metadata["format"]) != str(FORMAT) and version.isdecimal():
            raise ValueError(f"{path} is of format {version}; this vqkit reads format {FORMAT}: install a newer one.")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    if metadata.pop("sha256") != _digest(tensors, metadata):
        raise SafetensorError("its contents do not match their SHA-256")
    return metadata, tensors


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
