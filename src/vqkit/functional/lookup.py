"""From indices back to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_library = torch.library.Library("vqkit", "FRAGMENT")
_library.define("checked_indices(Tensor indices, SymInt codes) -> Tensor")


def look_up(codebook: Float[Tensor, "codes dim"], indices: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
    """``z_q = e_k`` (van den Oord et al. 2017, eq. 2); -1 (padding) gives zeros. Differentiable in the codebook.

    Raises:
        ValueError: an index outside -1..K-1 (on the CPU; an accelerator stops with its own assertion), or one that is
            no integer.

    >>> look_up(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
    tensor([[3., 4.],
            [0., 0.]])
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices has dtype {indices.dtype}; codes are named by integers: pass indices.long().")
    safe = torch.ops.vqkit.checked_indices(indices.reshape(-1), len(codebook))
    rows = codebook.index_select(0, safe.clamp(min=0))
    return torch.where((safe >= 0)[:, None], rows, 0).reshape(*indices.shape, codebook.shape[1])


def _checked_indices(indices_N: Tensor, codes: int) -> Tensor:
    if indices_N.device.type == "cpu" and indices_N.numel():
        least, greatest = (int(bound) for bound in torch.aminmax(indices_N))
        if least < -1 or greatest >= codes:
            wrong = least if least < -1 else greatest
            raise ValueError(
                f"indices holds {wrong}, but this codebook has {codes} codes: each index must be in 0..{codes - 1}, or "
                "-1 for padding."
            )
    return indices_N.to(torch.int64, copy=True)


_library.impl("checked_indices", _checked_indices, "CompositeExplicitAutograd")
torch.library.register_fake(
    "vqkit::checked_indices", lambda indices, codes: indices.new_empty(indices.shape, dtype=torch.int64), lib=_library
)
