"""How a table of codes starts, learns and revives: objects for the slots of a quantizer, in every framework."""

from vqkit.codebooks.revival import NoRevival, Reseed, Revival
from vqkit.codebooks.starts import DataFreeStart, DataStart, Given, KMeans, Normal, Start, Uniform
from vqkit.codebooks.updates import EMA, Frozen, Gradient, Update

__all__ = [
    "EMA",
    "DataFreeStart",
    "DataStart",
    "Frozen",
    "Given",
    "Gradient",
    "KMeans",
    "NoRevival",
    "Normal",
    "Reseed",
    "Revival",
    "Start",
    "Uniform",
    "Update",
]
