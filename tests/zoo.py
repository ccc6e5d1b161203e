"""The quantizers that the contract runs on: one line in ``ZOO`` is all a new one needs.

A product of all slots would be 48 cases; these eight hold every object at least once and every update with every
estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import vqkit
from vqkit import reference


@dataclass(frozen=True)
class Case:
    """``make(dim=8, codebook_size=16, seed=0)`` gives a quantizer that is ready: started, float32, in training mode.

    The other fields say what the contract holds it to: ``update`` is "gradient", "ema" or "frozen"; ``pull_back`` the
    closed form in ``reference.py`` of its estimator, ``gain`` the bound that this estimator states.
    """

    name: str
    make: Callable[..., vqkit.VectorQuantizer]
    update: str
    pull_back: Callable[..., np.ndarray] = reference.straight_through
    gain: float = 1.0
    commitment: float = 0.25

    def holding(self, codes: Tensor) -> vqkit.VectorQuantizer:
        """The quantizer with these codes, in their dtype where that is float32 or wider."""
        vq = self.make(dim=codes.shape[1], codebook_size=len(codes))
        if codes.dtype == torch.float64:
            vq = vq.double()
        vq.set_codebook(codes)
        return vq


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers that depend on the seed alone (and are not those that a codebook of that seed gets)."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 10_007), dtype=dtype)


def made(cls: type[vqkit.VectorQuantizer] = vqkit.VectorQuantizer, **slots) -> Callable[..., vqkit.VectorQuantizer]:
    """A ``make`` for ``Case``: ``cls`` with these slots. What starts from data is started from 256 normal vectors."""

    def make(dim: int = 8, codebook_size: int = 16, seed: int = 0) -> vqkit.VectorQuantizer:
        chosen = {name: slot(codebook_size, dim) if name == "start" else slot for name, slot in slots.items()}
        vq = cls(dim=dim, codebook_size=codebook_size, seed=seed, **chosen)
        if vq.pending:
            vqkit.start(vq, [vectors(256, dim, seed=seed + 1)])
        return vq

    return make


def normal(codes: int, dim: int) -> vqkit.Normal:
    return vqkit.Normal()


def uniform(codes: int, dim: int) -> vqkit.Uniform:
    return vqkit.Uniform()


def kmeans(codes: int, dim: int) -> vqkit.KMeans:
    return vqkit.KMeans(iterations=3)


def given(codes: int, dim: int) -> vqkit.Given:
    return vqkit.Given(vectors(codes, dim, seed=-7))


_ROTATION = {"pull_back": reference.rotation_trick, "gain": 10.0}
_rotation = vqkit.RotationTrick()

ZOO: tuple[Case, ...] = (
    Case("gradient", made(), "gradient"),
    Case(
        "gradient-rotation",
        made(estimator=_rotation, start=normal, commitment=1.0),
        "gradient",
        commitment=1.0,
        **_ROTATION,
    ),
    Case("gradient-kmeans-reseed", made(start=kmeans, revival=vqkit.Reseed()), "gradient"),
    Case("ema", made(update=vqkit.EMA(), start=normal, commitment=0.5), "ema", commitment=0.5),
    Case("ema-kmeans-rotation", made(update=vqkit.EMA(0.9), estimator=_rotation, start=kmeans), "ema", **_ROTATION),
    Case("ema-given-reseed", made(update=vqkit.EMA(), start=given, revival=vqkit.Reseed(after=5.0)), "ema"),
    Case("frozen", made(update=vqkit.Frozen(), start=given), "frozen"),
    Case("frozen-rotation", made(update=vqkit.Frozen(), estimator=_rotation, start=uniform), "frozen", **_ROTATION),
)
