"""The vector-quantized autoencoder: an encoder, a quantizer and a decoder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vqkit.codebooks import EMA, KMeans, Reseed, Revival, Start, Update
from vqkit.functional.estimators import Estimator, StraightThrough
from vqkit.models import hub
from vqkit.models.architectures import Convolutional, Patchwise
from vqkit.models.convolutional import ConvDecoder, ConvEncoder
from vqkit.models.objects import SLOTS, nearest_names, parse_object
from vqkit.models.patchwise import PatchDecoder, PatchEncoder
from vqkit.models.storage import FORMAT, read_config, replace_file, write_json
from vqkit.quantizers import ChannelsFirst, Losses, Quantizer, VectorQuantizer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


# Encoder (B, channels, H, W) in [0, 1] to (B, dim, H/stride, W/stride), and the decoder back.
_MODULES: dict[type, tuple[Any, Any]] = {
    Patchwise: (PatchEncoder, PatchDecoder),
    Convolutional: (ConvEncoder, ConvDecoder),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that a VQ-VAE of this package is built from; see ``VectorQuantizer`` for the quantizer's part.

    ``channels`` is that of the images, ``architecture`` builds encoder and decoder.
    """

    channels: int = 3
    architecture: Patchwise | Convolutional = Patchwise()
    dim: int = 16
    codebook_size: int = 512
    commitment: float = 0.25
    update: Update = EMA()
    estimator: Estimator = StraightThrough()
    start: Start = KMeans()
    revival: Revival = Reseed()

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; it must be at least 1.")
        for slot, classes in SLOTS.items():
            if not isinstance(getattr(self, slot), classes):
                choices = ", ".join(f"{cls.__name__}()" for cls in classes)
                raise ValueError(
                    f"{slot} is {getattr(self, slot)!r}; a configuration names one of {choices}. For any other "
                    "object compose the model yourself: VQVAE(encoder, quantizer, decoder)."
                )
        self._quantizer(seed=0)  # a configuration that no quantizer takes is refused here, not when it is built

    def build(self, seed: int | None = None) -> VQVAE:
        """A fresh model."""
        make_encoder, make_decoder = _MODULES[type(self.architecture)]
        encoder = make_encoder(self.channels, self.dim, self.architecture)
        decoder = make_decoder(self.channels, self.dim, self.architecture)
        return VQVAE(encoder, ChannelsFirst(self._quantizer(seed)), decoder, self)

    def _quantizer(self, seed: int | None) -> VectorQuantizer:
        return VectorQuantizer(
            dim=self.dim,
            codebook_size=self.codebook_size,
            update=self.update,
            estimator=self.estimator,
            commitment=self.commitment,
            start=self.start,
            revival=self.revival,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: repr(value) if name in SLOTS else value for name, value in values.items()}

    @staticmethod
    def from_json(entries: dict[str, Any]) -> ModelConfig:
        names = [field.name for field in fields(ModelConfig)]
        for name in entries:
            if name not in names:
                raise ValueError(
                    f"the model's configuration has an unknown entry {name!r}: {nearest_names(name, names)}"
                )
        return ModelConfig(**{k: parse_object(k, v) if k in SLOTS else v for k, v in entries.items()})


class Reconstructed(NamedTuple):
    """What a VQ-VAE returns: the decoder's output, int64 indices, and the quantizer's losses."""

    x_hat: Tensor
    indices: Tensor
    losses: Losses


class VQVAE(nn.Module):
    """``x_hat = decoder(z_q(encoder(x)))`` (van den Oord et al. 2017, figure 1), of any three modules.

    The objective is a reconstruction loss plus ``losses.total`` (eq. 3). For feature maps with their channels first
    wrap the quantizer: ``ChannelsFirst(VectorQuantizer(...))``. ``config`` is what ``save_pretrained`` writes; a model
    that ``ModelConfig.build`` made has it.

    >>> import vqkit
    >>> model = VQVAE(nn.Linear(9, 4), vqkit.VectorQuantizer(dim=4, codebook_size=16), nn.Linear(4, 9))
    >>> model(torch.rand(5, 9)).x_hat.shape
    torch.Size([5, 9])
    """

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, config: ModelConfig | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder, self.config = encoder, quantizer, decoder, config

    def forward(self, x: Float[Tensor, "batch ..."]) -> Reconstructed:
        z_q, indices, losses = self.quantizer(self.encoder(x))
        return Reconstructed(self.decoder(z_q), indices, losses)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch ..."]) -> Int[Tensor, "batch ..."]:
        """The indices of x."""
        return self.quantizer.encode(self.encoder(x))

    @torch.no_grad()
    def decode(self, indices: Int[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """What the decoder makes of indices."""
        dtype = next((parameter.dtype for parameter in self.decoder.parameters()), None)
        return self.decoder(self.quantizer.decode(indices, dtype))

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into ``directory``, each whole or not at all.

        Other entries of a ``config.json`` that is there already stay.
        """
        config = self._named_config()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "config.json"
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        entries |= {"format": FORMAT, "model": config.to_json()}
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        replace_file(directory / "model.safetensors", save(weights))
        write_json(path, entries)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, branch: str | None = None
    ) -> str:
        """Writes the model and a card into ``repo_id``, "user/name" on the Hugging Face hub; the commit's address."""
        config = self._named_config()  # refused before a repository is made
        if not hub.NAME.fullmatch(repo_id):
            raise ValueError(f"repo_id is {repo_id!r}; it must be of the form 'user/name'.")
        card = {"repo_id": repo_id, "config": config}
        with hub.errors_of(repo_id):
            model = hub.hosted()(self.save_pretrained)
            return model.push_to_hub(repo_id, private=private, token=token, branch=branch, model_card_kwargs=card)

    def _named_config(self) -> ModelConfig:
        if self.config is None:
            raise ValueError(
                "this model was composed by hand, so its modules cannot be named in a file: save model.state_dict() "
                "with safetensors.torch.save_file, or build the model with vqkit.models.ModelConfig(...).build()."
            )
        return self.config

    @staticmethod
    def from_pretrained(
        directory: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> VQVAE:
        """The model that ``save_pretrained`` or ``vqkit train`` left in ``directory``, in evaluation mode.

        A text "user/name" that is no path here is a model on the Hugging Face hub; the last three are for it alone.

        Raises:
            FileNotFoundError: no such directory, or no such model on the hub.
            ValueError: a missing, damaged or foreign file, or a newer format; the message names it.
            ConnectionError, ImportError: the hub does not answer; ``vqkit[hub]`` is not installed.
        """
        if hub.is_hosted(directory, revision):
            name = str(directory)
            with hub.errors_of(name):
                found = hub.hosted().from_pretrained(name, revision=revision, token=token, cache_dir=cache_dir)
                return VQVAE.from_pretrained(found.content, device)
        directory = Path(directory)
        entries = read_config(directory)
        path = directory / "model.safetensors"
        try:
            model = ModelConfig.from_json(entries["model"]).build(seed=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory / 'config.json'} does not describe a model ({error}).") from None
        try:
            model.load_state_dict(load_file(path, device="cpu"))
        except FileNotFoundError:
            raise ValueError(
                f"{directory} has no model.safetensors: its training did not get as far as its first checkpoint; "
                f"go on with vqkit train --resume {directory}."
            ) from None
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy or train it again.") from None
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise ValueError(f"{path} does not fit the model in config.json ({reason}).") from None
        return model.to(device).eval()
