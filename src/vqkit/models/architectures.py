"""What encoders and decoders a configuration may ask for; each framework has modules of its own for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patchwise:
    """Pixels are unshuffled into ``stride`` x ``stride`` patches, and back; an object for ``architecture``.

    No convolution runs at full resolution, which is where the paper's decoder spends most of its time. ``hidden``
    channels, and residual blocks (ReLU, 3x3, ReLU, 1x1) in the encoder and in the decoder.
    """

    stride: int = 4
    hidden: int = 128
    encoder_blocks: int = 1
    decoder_blocks: int = 3

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("hidden", 1), ("encoder_blocks", 0), ("decoder_blocks", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")


@dataclass(frozen=True)
class Convolutional:
    """Strided convolutions and residual blocks (van den Oord et al. 2017, section 4.1), an object for ``architecture``.

    ``stride`` pixels, a power of two, become one vector along each axis: by half per 4x4 convolution. Then ``blocks``
    residual blocks (ReLU, 3x3 to ``residual``, ReLU, 1x1 to ``hidden``); the decoder mirrors it.
    """

    stride: int = 4
    hidden: int = 128
    residual: int = 32
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise ValueError(f"stride is {self.stride}; it must be a power of two from 2 on, for example 4.")
        for name in ("hidden", "residual"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 2.")
        if self.blocks < 0:
            raise ValueError(f"blocks is {self.blocks}; it must not be negative.")
