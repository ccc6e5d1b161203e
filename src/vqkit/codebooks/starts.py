"""Where the codes are before the first step.

Each start gives the codebook and n, the weight of its past in an exponential moving average in vectors per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from vqkit.functional.kmeans import kmeans

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class DataFreeStart(Protocol):
    """A start that needs no data: the codebook stands when the quantizer has been made."""

    def codebook(self, codes: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


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

    def codebook(self, codes: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.std * torch.randn(codes, dim, generator=generator, device="cpu"), torch.zeros(codes)


@dataclass(frozen=True)
class Uniform:
    """``e ~ U(-bound/K, bound/K)``, the start of the first public implementations (bound 1), with n = 0.

    Codes that are short against z are told apart by direction, so that many are chosen from the first step on.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        _positive("bound", self.bound)

    def codebook(self, codes: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return (2 * torch.rand(codes, dim, generator=generator, device="cpu") - 1) * (self.bound / codes), torch.zeros(
            codes
        )


@dataclass(frozen=True, eq=False)
class Given:
    """The rows of ``array``, (K, D), as they are; under EMA each counts as one vector per step (n = 1)."""

    array: ArrayLike | Tensor

    def codebook(self, codes: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        given = torch.as_tensor(self.array)
        if tuple(given.shape) != (codes, dim):
            raise ValueError(
                f"array has shape {tuple(given.shape)}; with codebook_size={codes} and dim={dim} it must be "
                f"({codes}, {dim})."
            )
        if not bool(torch.isfinite(given).all()):
            raise ValueError("array holds NaN or infinity; every code must be finite.")
        dtype = torch.float64 if given.dtype == torch.float64 else torch.float32
        return given.detach().to(dtype, copy=True), torch.ones(codes, dtype=dtype)


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
        return kmeans(vectors, weights, codes, self.iterations, generator)


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be positive and finite.")
