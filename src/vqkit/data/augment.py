"""What may be done to a crop before the model sees it; objects for the ``augmentation`` slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8


@dataclass(frozen=True)
class NoAugmentation:
    """The crop as it is."""

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        return crop


@dataclass(frozen=True)
class Photographic:
    """Mirrors half of the crops left to right, and gives each an exposure: ``v^g`` with ``log g ~ U(-gamma, gamma)``.

    Six photos hold few exposures; a held-out one is reconstructed better when training has seen more.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 3:
            raise ValueError(f"gamma is {self.gamma}; it must be between 0 and 3, for example 0.5.")

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        levels = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-self.gamma, self.gamma))
        return np.take(np.rint(255 * levels).astype(np.uint8), crop)
