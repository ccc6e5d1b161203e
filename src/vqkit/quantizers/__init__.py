"""Quantizer layers in PyTorch."""

from vqkit.quantizers.base import Losses, Quantized, Quantizer
from vqkit.quantizers.channels import ChannelsFirst
from vqkit.quantizers.learning import Attachment, attach, discard, start, step
from vqkit.quantizers.vector import VectorQuantizer

__all__ = [
    "Attachment",
    "ChannelsFirst",
    "Losses",
    "Quantized",
    "Quantizer",
    "VectorQuantizer",
    "attach",
    "discard",
    "start",
    "step",
]
