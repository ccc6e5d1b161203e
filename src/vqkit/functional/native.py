"""The C++ library for CPUs (kernel/ in the repository): whether it is here, and its calls.

Suffixes: N vectors, K codes, D dimensions.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import torch
from torch import Tensor

from vqkit.functional.faults import refuse

_log = logging.getLogger("vqkit")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_SEARCH = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, _POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _POINTER)
_SIGNATURES = {  # what each gives, and takes
    "vqkit_interface": (ctypes.c_int,),
    "vqkit_instructions": (ctypes.c_char_p,),
    "vqkit_nearest_float": _SEARCH,
    "vqkit_nearest_double": _SEARCH,
    "vqkit_look_up": (ctypes.c_double, ctypes.c_int, *(_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, *[_POINTER] * 3)),
    "vqkit_add_by_code": (None, ctypes.c_int, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER),
}
_INTERFACE = 1  # as in kernel/nearest.cpp: another number, other arguments
_NOT_FINITE, _NO_MEMORY = 1, 2
_PLAIN = (Tensor, torch.nn.Parameter)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library and what it was built for, or None and why."""
    try:
        found = ctypes.CDLL(f"{__file__.removesuffix('native.py')}libvqkit.so")
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, str(error)
    if found.vqkit_interface() != _INTERFACE:
        return None, "it was built from other sources"
    return found, found.vqkit_instructions().decode()


# When this is imported: after PyTorch, so that both share one OpenMP runtime and its threads, and before the process
# forks, of which the library must know.
_LIBRARY, _ABOUT = _load()


@cache
def instructions() -> str | None:
    """The instructions of this processor that the library was built for, None where there is none; says it once."""
    if _LIBRARY is None:
        _log.warning(
            "vqkit searches with PyTorch, which takes several times as long as its C++ library would: install a C++ "
            "compiler, then vqkit again (%s).",
            _ABOUT,
        )
        return None
    _log.info("vqkit searches with its C++ library, built for %s.", _ABOUT)
    return _ABOUT


def nearest(z_ND: Tensor, codebook_KD: Tensor, instructions: str) -> Tensor:
    """The indices, of tensors on the CPU that are both float32 or both float64.

    Raises:
        NotFinite: a vector or a code is not.
    """
    z_ND, codebook_KD = (x.contiguous().resolve_neg() for x in (z_ND, codebook_KD))
    indices_N = z_ND.new_empty(len(z_ND), dtype=torch.int64)
    if _LIBRARY is None or not len(z_ND):
        return indices_N
    function = _LIBRARY.vqkit_nearest_double if z_ND.dtype == torch.float64 else _LIBRARY.vqkit_nearest_float
    outcome = function(
        *(instructions.encode(), torch.get_num_threads(), z_ND.data_ptr(), len(z_ND)),
        *(codebook_KD.data_ptr(), *codebook_KD.shape, indices_N.data_ptr()),
    )
    if outcome == _NOT_FINITE:
        refuse(z_ND, codebook_KD)
    if outcome == _NO_MEMORY:
        raise MemoryError(f"too little memory to search {len(codebook_KD)} codes for {len(z_ND)} vectors")
    return indices_N


def is_watched() -> bool:
    """Whether somebody traces or transforms the operations, who would not see what is done to memory from outside."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0


def takes(indices_N: Tensor, *tensors: Tensor) -> bool:
    """Whether ``look_up`` and ``add_by_code`` may be called: eager, float32, in memory as the library reads it."""
    if is_watched() or _LIBRARY is None:
        return False
    stored = (type(x) in _PLAIN and x.device.type == "cpu" and x.is_contiguous() for x in (indices_N, *tensors))
    plain = (x.dtype == torch.float32 and not x.is_neg() for x in tensors)
    fits = indices_N.dtype == torch.int64 and len(indices_N) * tensors[0].shape[-1] == tensors[0].numel()
    return fits and all(stored) and all(plain)


def look_up(z: Tensor, codebook_KD: Tensor, indices_N: Tensor) -> tuple[Tensor, Tensor, float]:
    """The codes, in the shape of z; ``residual_ND = z - e``; and the sum of its squares."""
    z_q, residual_ND = torch.empty_like(z), z.new_empty(len(indices_N), codebook_KD.shape[1])
    squares = _LIBRARY.vqkit_look_up(  # type: ignore[union-attr]
        *(torch.get_num_threads(), z.data_ptr(), len(indices_N), codebook_KD.data_ptr(), *codebook_KD.shape),
        *(indices_N.data_ptr(), z_q.data_ptr(), residual_ND.data_ptr()),
    )
    if squares < 0:
        raise IndexError(f"an index is outside 0..{len(codebook_KD) - 1}")
    return z_q, residual_ND, squares


def add_by_code(residual_ND: Tensor, indices_N: Tensor, counts_K: Tensor, sums_KD: Tensor) -> None:
    """Adds to ``counts_K`` how often each code was chosen, to ``sums_KD`` its residuals; one of them may be empty."""
    _LIBRARY.vqkit_add_by_code(  # type: ignore[union-attr]
        *(torch.get_num_threads(), residual_ND.data_ptr(), *residual_ND.shape, indices_N.data_ptr()),
        *(max(len(counts_K), len(sums_KD)), counts_K.data_ptr() or None, sums_KD.data_ptr() or None),
    )
