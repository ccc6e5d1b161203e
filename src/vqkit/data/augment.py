"""What may be done to a crop before the model sees it; objects for the ``augmentation`` slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

_LEVELS = np.linspace(0, 1, 256, dtype=np.float32)


@dataclass(frozen=True)
class NoAugmentation:
    """The crop as it is."""

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        return crop


@dataclass(frozen=True)
class Photographic:
    """Mirrors half of the crops left to right, and gives each another exposure, white balance and saturation.

    A value v in [0, 1] becomes ``v^g``, ``log g = a + b`` with ``a ~ U(-exposure, exposure)`` for the crop and
    ``b ~ U(-balance, balance)`` for each channel; then each pixel keeps the share ``s ~ U(saturation, 1)`` of its
    difference from its gray. Six photos hold few colours, and vivid ones: a held-out photo gains about 1 dB.
    """

    exposure: float = 0.5
    balance: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name, most in (("exposure", 3), ("balance", 3), ("saturation", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and {most}, for example 0.2.")

    def __call__(self, crop: UInt8[np.ndarray, "S S C"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S C"]:
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        channels = crop.shape[2]
        logarithms = rng.uniform(-self.exposure, self.exposure) + rng.uniform(-self.balance, self.balance, channels)
        levels = 255 * _LEVELS ** np.exp(logarithms)[:, None].astype(np.float32)
        values = np.stack([np.take(levels[c], crop[:, :, c]) for c in range(channels)], axis=2)
        gray = values.mean(axis=2, keepdims=True)
        return np.rint(gray + rng.uniform(self.saturation, 1) * (values - gray)).astype(np.uint8)
