"""A sample of vectors that depends on nothing but which vectors there were.

Starting a codebook and reviving its dead codes need vectors, which sums do not give. The sample is the S distinct
rows with the smallest hash of (bytes of the row, key): whatever the order, the split into micro-batches, the number
of repetitions or the rank that saw them, the same vectors give the same sample, and two samples merge into the sample
of the union. Over keys each vector is as likely to be drawn as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_library = torch.library.Library("vqkit", "FRAGMENT")
_library.define("sample_rows(Tensor rows, Tensor weights, Tensor key, SymInt size) -> Tensor")


def sample_rows(
    rows: Float[Tensor, "n dim"], weights: Float[Tensor, " n"], key: Int[Tensor, ""], size: int
) -> Float[Tensor, "size dim+1"]:
    """The ``size`` distinct finite rows of least hash under ``key``, in order of hash, padded with rows of NaN.

    The last column is the sum of the weights of all rows equal to it. It is exact for a union too: a row that is among
    the least of the union is among the least of each part that holds it.

    ``h = mix(b + sum_d a_d bits_d)`` modulo 2^64, with b and odd a_d drawn from the key (multilinear hashing).
    """
    return torch.ops.vqkit.sample_rows(rows.detach(), weights, key, size)


def _sample_rows(rows_ND: Tensor, weights_N: Tensor, key: Tensor, size: int) -> Tensor:
    finite_N = torch.isfinite(rows_ND).all(1)
    rows_ND, weights_N = rows_ND[finite_N] + 0.0, weights_N[finite_N]  # -0.0 becomes 0.0: equal rows have equal bytes
    bits = rows_ND.contiguous().view(torch.int64 if rows_ND.dtype == torch.float64 else torch.int32)
    drawn = _mix(torch.arange(rows_ND.shape[1] + 1, device=rows_ND.device) + _mix(key.to(rows_ND.device)))
    hashes_N = _mix((bits * (drawn[1:] | 1)).sum(1) + drawn[0])
    sorted_N, order_N = hashes_N.sort(stable=True)
    first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    chosen = order_N[first_N][:size]
    sums = weights_N.new_zeros(int(first_N.sum())).index_add_(0, first_N.cumsum(0) - 1, weights_N[order_N])
    sample = rows_ND.new_full((size, rows_ND.shape[1] + 1), torch.nan)
    sample[: len(chosen), :-1], sample[: len(chosen), -1] = rows_ND[chosen], sums[:size]
    return sample


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of the output depends on every bit of x."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


_library.impl("sample_rows", _sample_rows, "CompositeExplicitAutograd")
torch.library.register_fake(
    "vqkit::sample_rows", lambda rows, weights, key, size: rows.new_empty(size, rows.shape[1] + 1), lib=_library
)
