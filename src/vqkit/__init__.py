"""Vector-quantized autoencoders: quantizers whose gradients can be trusted, and a VQ-VAE from one command.

Importing ``vqkit`` imports no framework; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vqkit.codebooks import EMA as EMA
    from vqkit.codebooks import Frozen as Frozen
    from vqkit.codebooks import Given as Given
    from vqkit.codebooks import Gradient as Gradient
    from vqkit.codebooks import KMeans as KMeans
    from vqkit.codebooks import NoRevival as NoRevival
    from vqkit.codebooks import Normal as Normal
    from vqkit.codebooks import Reseed as Reseed
    from vqkit.codebooks import Uniform as Uniform
    from vqkit.functional.estimators import RotationTrick as RotationTrick
    from vqkit.functional.estimators import StraightThrough as StraightThrough
    from vqkit.functional.usage import Usage as Usage
    from vqkit.gradients.audit import audit as audit
    from vqkit.gradients.trace import trace as trace
    from vqkit.models import VQVAE as VQVAE
    from vqkit.models.codebook_file import load_codebook as load_codebook
    from vqkit.models.codebook_file import save_codebook as save_codebook
    from vqkit.quantizers import ChannelsFirst as ChannelsFirst
    from vqkit.quantizers import Losses as Losses
    from vqkit.quantizers import Quantized as Quantized
    from vqkit.quantizers import Quantizer as Quantizer
    from vqkit.quantizers import VectorQuantizer as VectorQuantizer
    from vqkit.quantizers import attach as attach
    from vqkit.quantizers import discard as discard
    from vqkit.quantizers import start as start
    from vqkit.quantizers import step as step
    from vqkit.runs.train import train as train
    from vqkit.training import Config as Config

_HOMES = {
    "vqkit.codebooks": ("EMA", "Frozen", "Given", "Gradient", "KMeans", "NoRevival", "Normal", "Reseed", "Uniform"),
    "vqkit.functional.estimators": ("RotationTrick", "StraightThrough"),
    "vqkit.functional.usage": ("Usage",),
    "vqkit.quantizers": (
        ("ChannelsFirst", "Losses", "Quantized", "Quantizer", "VectorQuantizer", "attach", "discard", "start", "step")
    ),
    "vqkit.models": ("VQVAE",),
    "vqkit.models.codebook_file": ("load_codebook", "save_codebook"),
    "vqkit.gradients.audit": ("audit",),
    "vqkit.gradients.trace": ("trace",),
    "vqkit.training": ("Config",),
    "vqkit.runs": ("train",),
}
_MORE = ("vqkit.training", "vqkit.runs")  # what needs more than PyTorch
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vqkit' has no attribute {name!r}")
    module = _HOME[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vqkit"):
            raise
        missing = error.name.partition(".")[0]
        extra = "torch" if missing == "torch" and module not in _MORE else "train"
        raise ImportError(f"vqkit.{name} needs {missing}: pip install 'vqkit[{extra}]'") from error


def __dir__() -> list[str]:
    return sorted(__all__)
