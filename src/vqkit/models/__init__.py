"""Autoencoders."""

from vqkit.models.convolutional import ConvDecoder, ConvEncoder, Convolutional
from vqkit.models.patchwise import PatchDecoder, PatchEncoder, Patchwise
from vqkit.models.vqvae import VQVAE, ModelConfig, Reconstructed

__all__ = [
    "VQVAE",
    "ConvDecoder",
    "ConvEncoder",
    "Convolutional",
    "ModelConfig",
    "PatchDecoder",
    "PatchEncoder",
    "Patchwise",
    "Reconstructed",
]
