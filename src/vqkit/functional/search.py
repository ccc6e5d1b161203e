"""The nearest code of every vector, exactly, in memory that does not grow with N x K.

On the CPU a C++ library searches (`native`), elsewhere, and where it was not built, PyTorch does (`chunked`). Both give
the indices of the definition, and so the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.functional import chunked, native

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def nearest_codes(z: Float[Tensor, "... dim"], codebook: Float[Tensor, "codes dim"]) -> Int[Tensor, "..."]:
    """The index of the nearest row of ``codebook`` for each vector of ``z``.

    ``k(x) = argmin_k sum_d (z_d - e_kd)^2`` (van den Oord et al. 2017, eq. 1), decided as in float64 with the sum
    taken in order of d; of equal sums the lowest index. Chunks, threads, batch size and autocast never change it.

    Args:
        z: vectors, any floating dtype.
        codebook: codes, any floating dtype, at least one row.

    Returns:
        int64 indices of shape ``z.shape[:-1]``.

    Raises:
        ValueError: shapes or dtypes that do not fit; on the CPU also NaN or infinity in ``z`` or ``codebook``. (On an
            accelerator a look at the data would stall it: a row that is not finite gets some valid index.)

    >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> nearest_codes(torch.tensor([[0.9, 0.8], [0.5, 0.5]]), codebook)
    tensor([1, 0])
    """
    _check(z, codebook)
    return search(z.detach().reshape(-1, z.shape[-1]), codebook.detach()).reshape(z.shape[:-1])


def search(z_ND: Tensor, codebook_KD: Tensor) -> Int[Tensor, " n"]:
    """``nearest_codes`` of detached tensors that were checked already."""
    if native.is_watched() or type(z_ND) is not Tensor or type(codebook_KD) is not Tensor or z_ND.is_meta:
        return torch.ops.vqkit.nearest_codes.default(z_ND, codebook_KD)
    return _nearest_codes(z_ND, codebook_KD)  # saves the dispatch, 24 us


def squared_distances_to(
    z: Float[Tensor, "... dim"], codebook: Float[Tensor, "codes dim"], indices: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """``sum_d (z_d - e_d)^2`` between each vector and the code that ``indices`` names for it, in float64.

    >>> squared_distances_to(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([0]))
    tensor([25.], dtype=torch.float64)
    """
    _check(z, codebook)
    if indices.shape != z.shape[:-1]:
        raise ValueError(
            f"indices has shape {tuple(indices.shape)}, but z of shape {tuple(z.shape)} has one vector for each of "
            f"{tuple(z.shape[:-1])}: pass one index for each vector."
        )
    return (z.double() - codebook.double()[indices]).square().sum(-1)


def _check(z: Tensor, codebook: Tensor) -> None:
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; it must be (codes, dim), each at least 1.")
    if z.ndim == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"z has shape {tuple(z.shape)}, but the codes have {codebook.shape[1]} dimensions: the last axis of z must "
            "be that long (move a channel axis to the end with z.movedim(1, -1))."
        )
    if z.device != codebook.device:
        raise ValueError(
            f"z is on {z.device} and codebook on {codebook.device}; both must be on one device: z.to(codebook.device)."
        )
    for name, tensor in (("z", z), ("codebook", codebook)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be floating: convert it with {name}.float().")


# --- the operator -------------------------------------------------------------------------------------------------
# An operator, because its control flow looks at the data, which a compiled graph cannot do. `Library.define` costs
# about 10 us a call; the `custom_op` decorator costs 21 to 63.

_library = torch.library.Library("vqkit", "FRAGMENT")
_library.define("nearest_codes(Tensor z, Tensor codebook) -> Tensor")


def _nearest_codes_fake(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    return z_ND.new_empty(z_ND.shape[0], dtype=torch.int64)


def _nearest_codes(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    device = z_ND.device.type
    if device == codebook_KD.device.type == "cpu" and (instructions := native.instructions()):
        double = torch.float64 in (z_ND.dtype, codebook_KD.dtype)
        work = torch.float64 if double else torch.float32
        return native.nearest(z_ND.to(work), codebook_KD.to(work), instructions)
    if torch.is_autocast_enabled(device):  # the body of an operator runs under its caller's autocast
        with torch.autocast(device, enabled=False):
            return chunked.nearest(z_ND, codebook_KD)
    return chunked.nearest(z_ND, codebook_KD)


_library.impl("nearest_codes", _nearest_codes, "CompositeExplicitAutograd")
torch.library.register_fake("vqkit::nearest_codes", _nearest_codes_fake, lib=_library)
