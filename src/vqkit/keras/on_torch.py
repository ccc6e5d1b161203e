"""What Keras has no operation for, on its PyTorch backend; see ``on_tensorflow``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqkit.functional.search import nearest_codes


def search(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    return nearest_codes(z_ND, codebook_KD).to(torch.int32)


def is_concrete(x: Tensor) -> bool:
    """On an accelerator a look at the values would wait for it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def read(variable: Any) -> Tensor:
    return variable.value


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


def look_up(codebook_KD: Tensor, indices_N: Tensor) -> Tensor:
    return torch.nn.functional.embedding(indices_N, codebook_KD)


def segment_sum(x: Tensor, indices_N: Tensor, codes: int) -> Tensor:
    return x.new_zeros((codes, *x.shape[1:])).index_add(0, indices_N, x)


def over_replicas(sums: list[Tensor], rows: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    return sums, rows
