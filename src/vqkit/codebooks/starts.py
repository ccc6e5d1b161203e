"""Where the codes are before the first step.

Each start gives the codebook and n, the weight of its past in an exponential moving average in vectors per step. What
is random comes from a generator ``rng`` with the methods ``standard_normal(shape)`` and ``random(shape)`` of NumPy's,
so that each framework draws by its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor


class DataFreeStart(Protocol):
    """A start that needs no data: the codebook stands when the quantizer has been made."""

    def codebook(self, codes: int, dim: int, rng: Any) -> tuple[Any, Any]: ...


@runtime_checkable
class DataStart(Protocol):
    """A start from encoder outputs: until the first ``step()``, or ``vqkit.start``, the codebook is zero."""

    def vectors(self, codes: int) -> int: ...
    def from_vectors(
        self, vectors: Tensor, weights: Tensor, codes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The codebook, and of the sum of ``weights`` the part that each code stands for."""
        ...


Start = DataFreeStart | DataStart


@dataclass(frozen=True)
class Normal:
    """``e ~ N(0, std^2)``, with n = 0: under EMA the first vectors that choose a code replace it by their mean."""

    std: float = 1.0

    def __post_init__(self) -> None:
        _positive("std", self.std)

    def codebook(self, codes: int, dim: int, rng: Any) -> tuple[Any, float]:
        return self.std * rng.standard_normal((codes, dim)), 0.0


@dataclass(frozen=True)
class Uniform:
    """``e ~ U(-bound/K, bound/K)``, the start of the first public implementations (bound 1), with n = 0.

    Codes that are short against z are told apart by direction, so that many are chosen from the first step on.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        _positive("bound", self.bound)

    def codebook(self, codes: int, dim: int, rng: Any) -> tuple[Any, float]:
        return (2 * rng.random((codes, dim)) - 1) * (self.bound / codes), 0.0


@dataclass(frozen=True, eq=False)
class Given:
    """The rows of ``array``, (K, D), as they are; under EMA each counts as ``n`` vectors per step, a number or (K,)."""

    array: ArrayLike | Tensor
    n: float | ArrayLike = 1.0

    def codebook(self, codes: int, dim: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
        given, n = as_numpy(self.array), as_numpy(self.n)
        if given.shape != (codes, dim):
            sizes = f"set codebook_size={given.shape[0]} and dim={given.shape[1]}, or " if given.ndim == 2 else ""
            raise ValueError(
                f"array has shape {given.shape}; with codebook_size={codes} and dim={dim} it must be ({codes}, {dim}): "
                f"{sizes}pass codes of that shape."
            )
        if n.shape not in ((), (codes,)) or not (n >= 0).all() or not np.isfinite(n).all():
            raise ValueError(f"n has shape {n.shape}; it must be a number or {codes} of them, finite and not negative.")
        if not np.isfinite(given).all():
            raise ValueError("array holds NaN or infinity; every code must be finite.")
        return given, np.array(np.broadcast_to(n, codes), given.dtype)


@dataclass(frozen=True)
class KMeans:
    """The centres of k-means on sampled encoder outputs; n is each cluster's size, in vectors per step.

    ``vectors_per_code`` times K distinct vectors are sampled, or as many as there are; each counts as often as it
    occurs.
    """

    iterations: int = 10
    vectors_per_code: int = 16

    def __post_init__(self) -> None:
        _positive("iterations", self.iterations)
        _positive("vectors_per_code", self.vectors_per_code)

    def vectors(self, codes: int) -> int:
        return self.vectors_per_code * codes

    def from_vectors(
        self, vectors: Tensor, weights: Tensor, codes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        from vqkit.functional.kmeans import kmeans  # PyTorch's, and with it this start

        return kmeans(vectors, weights, codes, self.iterations, generator)


def as_numpy(array: Any) -> np.ndarray:
    """A copy, in float64 of an array in float64, else in float32; of PyTorch's tensors NumPy takes not all."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = (array.float() if array.element_size() < 4 else array).numpy()
    wide = getattr(array, "dtype", None) == np.float64  # numbers in a list are in no precision of their own
    return np.array(array, np.float64 if wide else np.float32)


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be positive and finite.")
