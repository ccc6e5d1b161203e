"""What may be done to a crop before the model sees it; objects for the ``augmentation`` slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

_LEVELS = np.linspace(0, 1, 256)


@dataclass(frozen=True)
class NoAugmentation:
    """The crop as it is."""

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        return crop


@dataclass(frozen=True)
class Photographic:
    """Mirrors half of the crops left to right, and gives each another exposure and white balance.

    A value v in [0, 1] becomes ``v^g`` with ``log g ~ U(-balance, balance)``, drawn for each channel: six photos hold
    few colours, and a photo that was held out has others.
    """

    balance: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 3:
            raise ValueError(f"balance is {self.balance}; it must be between 0 and 3, for example 0.4.")

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        channels = crop.shape[2]
        powers = np.exp(rng.uniform(-self.balance, self.balance, channels))
        levels = np.rint(255 * _LEVELS ** powers[:, None]).astype(np.uint8)
        return np.stack([np.take(levels[c], crop[:, :, c]) for c in range(channels)], axis=2)
