"""The search in PyTorch alone, a chunk of vectors at a time: on accelerators, and on CPUs without the C++ library.

Suffixes give shapes: N vectors, K codes, D dimensions.

How it stays exact (law 2) at the speed of a matrix product: the score ``x.e - |e|^2/2`` orders codes as the distance
does, up to a rounding error that has a bound. A row whose best code beats every other by more than that is settled.
Where many are not, both sides are moved by the codebook's mean, so that data far from the origin lose nothing. The few
that remain are scored again in float64, and those that even float64 cannot part are decided by the definition itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.functional.faults import refuse

# Scores held at a time. 2^20 float32 are 4 MiB, which a CPU's cache still holds; a GPU wants larger pieces.
_CHUNK_CPU, _CHUNK_ACCELERATOR = 2**20, 2**24
_NONE = 2**62  # above every index
_ROUNDING = {dtype: (torch.finfo(dtype).eps, torch.finfo(dtype).tiny) for dtype in (torch.float32, torch.float64)}


def nearest(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """The indices, on any device, for any floating dtypes; `vqkit.functional.nearest_codes` says which they are."""
    double = z_ND.dtype == torch.float64 or codebook_KD.dtype == torch.float64 or not _products_are_float32()
    work = torch.float64 if double and z_ND.device.type != "mps" else torch.float32  # which has no float64
    z_ND, codebook_KD = z_ND.to(work), codebook_KD.to(work)
    indices_N, rows_M = _score(z_ND, codebook_KD)
    if 16 * rows_M.numel() > len(z_ND):  # far from the origin, where squares dwarf distances
        indices_N, rows_M = _score(*_centred(z_ND, codebook_KD))
    if rows_M.numel():
        rows_M = _finite_rows(z_ND, codebook_KD, rows_M, indices_N)
        z_MD, codebook_KD = _as_float64(z_ND[rows_M]), _as_float64(codebook_KD)
        if not double:
            indices_M, tied_T = _score(*_centred(z_MD, codebook_KD))
            indices_N[rows_M] = indices_M.to(rows_M.device)
            rows_M, z_MD = rows_M[tied_T.to(rows_M.device)], z_MD[tied_T]
        if rows_M.numel():  # float64 settles nearly all of them, and to look for equal codes takes 2 ms
            indices_N[rows_M] = _decide(z_MD, codebook_KD).to(rows_M.device)
    return indices_N


def _chunk_rows(z_ND: Tensor, codes: int) -> int:
    return max(1, (_CHUNK_CPU if z_ND.device.type == "cpu" else _CHUNK_ACCELERATOR) // codes)


def _centred(z_ND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides moved by the codebook's mean."""
    centre_D = codebook_KD.mean(0)
    return z_ND - centre_D, codebook_KD - centre_D


def _bounded_scores(x_RD: Tensor, e_KD: Tensor, squares_K: Tensor) -> tuple[Tensor, Tensor]:
    """The scores, and for each row below what a code's score says that the code is farther beyond doubt.

    With ``u`` the unit roundoff and E the longest code, product, norm and difference together err by less than
    ``(D + 8) u (|x| E + E^2)`` (Cauchy-Schwarz), and the definition by ``(D + 8) u64 (|x| + E)^2``; each is taken
    four times, for two codes and a margin. The last term covers what underflows.
    """
    eps, tiny = _ROUNDING[x_RD.dtype]
    dims = x_RD.shape[1] + 8
    scores_RK = (x_RD @ e_KD.T).sub_(squares_K, alpha=0.5)  # addmm would copy the squares R times over first
    longest = squares_K.amax().sqrt()
    longest = longest + (longest - longest)  # NaN where a square overflowed, which then leaves every row in doubt
    reach_R = torch.linalg.vecdot(x_RD, x_RD).sqrt_().add_(longest)
    bound_R = (reach_R * (2 * dims * _ROUNDING[torch.float64][0])).add_(longest * (2 * dims * eps)).mul_(reach_R)
    return scores_RK, scores_RK.amax(1).sub_(bound_R).sub_(4 * dims * tiny)


def _score(x_ND: Tensor, e_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The best code of each row, and the rows of which rounding leaves that in doubt (NaN and overflow among them)."""
    squares_K, rows = torch.linalg.vecdot(e_KD, e_KD), _chunk_rows(x_ND, len(e_KD))
    index_K = torch.arange(len(e_KD), device=x_ND.device)
    digits_K2 = torch.stack([index_K // 4096, index_K % 4096], 1).to(x_ND.dtype)  # float32 counts to 2^24 alone
    found, settled = [], []
    for x_RD in x_ND.split(rows) if len(x_ND) > rows else (x_ND,):
        scores_RK, limit_R = _bounded_scores(x_RD, e_KD, squares_K)
        # 1 where a code may be the nearest, else 0. Of a single 1 the place is a product away; to have `min` find it,
        # which does not vectorize, takes ten times as long. In a row that is not finite no code is above the limit.
        near_RK = scores_RK.gt_(limit_R[:, None])
        high_R, low_R = (near_RK @ digits_K2).to(torch.int64).unbind(1)
        found.append(high_R * 4096 + low_R)
        settled.append(near_RK.sum(1) == 1)
    settled_N = settled[0] if len(settled) == 1 else torch.cat(settled)
    indices_N = found[0] if len(found) == 1 else torch.cat(found)
    return indices_N, indices_N[:0] if bool(settled_N.all()) else (~settled_N).nonzero()[:, 0]


def _finite_rows(z_ND: Tensor, codebook_KD: Tensor, rows_M: Tensor, indices_N: Tensor) -> Tensor:
    """Those of ``rows_M`` that are finite; on the CPU the others are an error, elsewhere they get index 0."""
    finite_M = torch.isfinite(z_ND[rows_M]).all(1)
    if z_ND.device.type == "cpu" and not bool(finite_M.all() and torch.isfinite(codebook_KD).all()):
        refuse(z_ND, codebook_KD)
    indices_N[rows_M[~finite_M]] = 0
    return rows_M[finite_M]


def _decide(z_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """The definition, in float64, over the codes that scores cannot part: the lowest index of the least exact sum."""
    codebook_KD, lowest_K = _distinct(codebook_KD)
    x_MD, e_KD = _centred(z_MD, codebook_KD)
    squares_K = torch.linalg.vecdot(e_KD, e_KD)
    rows, pairs = _chunk_rows(z_MD, len(e_KD)), _CHUNK_CPU // z_MD.shape[1] + 1
    decided = []
    for start in range(0, len(z_MD), rows):
        z_RD, x_RD = z_MD[start : start + rows], x_MD[start : start + rows]
        scores_RK, limit_R = _bounded_scores(x_RD, e_KD, squares_K)
        row_P, code_P = (~(scores_RK < limit_R[:, None])).nonzero(as_tuple=True)
        sums = [
            _sum_in_order(z_RD[row_p] - codebook_KD[code_p])
            for row_p, code_p in zip(row_P.split(pairs), code_P.split(pairs), strict=True)
        ]
        sum_P = torch.cat(sums) if sums else z_RD.new_empty(0)
        least_R = sum_P.new_full((len(z_RD),), torch.inf).scatter_reduce_(0, row_P, sum_P, "amin")
        tied_P = lowest_K[code_P].masked_fill(sum_P != least_R[row_P], _NONE)
        decided.append(tied_P.new_full((len(z_RD),), _NONE).scatter_reduce_(0, row_P, tied_P, "amin"))
    return torch.cat(decided)


def _distinct(codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct codes and the lowest index of each: equal ones, as in a codebook of zeros, tie on every row."""
    codes_UD, which_K = torch.unique(codebook_KD, dim=0, return_inverse=True)
    index_K = torch.arange(len(codebook_KD), device=codebook_KD.device)
    return codes_UD, index_K.new_full((len(codes_UD),), _NONE).scatter_reduce_(0, which_K, index_K, "amin")


def _sum_in_order(difference_PD: Tensor) -> Tensor:
    """``sum_d difference_d^2``, one addition for each d in turn, so that every machine rounds alike."""
    squares_DP = difference_PD.square_().T.contiguous()
    total_P = torch.zeros_like(squares_DP[0])
    for square_P in squares_DP:
        total_P += square_P
    return total_P


def _products_are_float32() -> bool:
    """False where the process allows TF32 or bfloat16 inside a float32 product, which the bounds do not cover."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set for one backend alone, of which PyTorch gives no single answer
        return False


def _as_float64(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none (Apple's)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
