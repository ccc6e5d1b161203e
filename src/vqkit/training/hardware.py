"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field

import torch

_COMPILERS = ("g++", "clang++")
_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_device() -> str:
    """``cuda`` where PyTorch sees such a GPU, else ``cpu``; ``mps`` is there for those who ask for it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Hardware:
    """Where a run computes; every choice learns the same, to its rounding.

    ``precision``: ``float32``, or ``bf16`` or ``fp16`` for the convolutions (autocast; the search stays exact and the
    losses float32; fp16 scales its gradients). ``compile``: the model goes through ``torch.compile``, which takes a
    C++ compiler and a minute at the start. ``workers``: processes that load images; None chooses.
    """

    device: str = field(default_factory=best_device)
    precision: str = "float32"
    compile: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        known = ["cpu", *(["cuda", *gpus] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else [])]
        if self.device not in known:
            raise ValueError(f"device is {self.device!r}; PyTorch can compute here on {', '.join(known)}.")
        if self.precision not in _DTYPES:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(_DTYPES)}.")
        if (
            self.compile
            and self.kind == "cpu"
            and not any(map(shutil.which, (os.environ.get("CXX", "c++"), *_COMPILERS)))
        ):
            raise ValueError(
                "compile needs a C++ compiler, and none is on the PATH: install g++ or clang, or do without."
            )
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers >= 0):
            raise ValueError(f"workers is {self.workers!r}; it must be a number of processes, 0 or more.")

    @property
    def kind(self) -> str:
        """The device without its number."""
        return torch.device(self.device).type

    def autocast(self) -> torch.autocast:
        dtype = _DTYPES[self.precision]
        return torch.autocast(self.kind, dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Of losses whose gradients would underflow in float16; for the other precisions it does nothing."""
        return torch.amp.GradScaler(self.kind, enabled=self.precision == "fp16")
