"""Autoencoders."""

from typing import TYPE_CHECKING

from vqkit import lazy

if TYPE_CHECKING:
    from vqkit.models.architectures import Convolutional as Convolutional
    from vqkit.models.architectures import Patchwise as Patchwise
    from vqkit.models.convolutional import ConvDecoder as ConvDecoder
    from vqkit.models.convolutional import ConvEncoder as ConvEncoder
    from vqkit.models.patchwise import PatchDecoder as PatchDecoder
    from vqkit.models.patchwise import PatchEncoder as PatchEncoder
    from vqkit.models.vqvae import VQVAE as VQVAE
    from vqkit.models.vqvae import ModelConfig as ModelConfig
    from vqkit.models.vqvae import Reconstructed as Reconstructed

__getattr__, __all__ = lazy.names(
    __name__,
    {
        "vqkit.models.architectures": ("Convolutional", "Patchwise"),
        "vqkit.models.convolutional": ("ConvDecoder", "ConvEncoder"),
        "vqkit.models.patchwise": ("PatchDecoder", "PatchEncoder"),
        "vqkit.models.vqvae": ("VQVAE", "ModelConfig", "Reconstructed"),
    },
)
