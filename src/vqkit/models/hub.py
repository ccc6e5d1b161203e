"""Models on the Hugging Face hub, through huggingface_hub's mixin, which is imported on first use: it takes 0.2 s."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CARD = """---
{{ card_data }}
---
# {{ repo_id }}

A vector-quantized autoencoder of images. After `pip install 'vqkit[torch,hub]'`:

    from vqkit.models import VQVAE
    model = VQVAE.from_pretrained("{{ repo_id }}")
    indices = model.encode(images)  # (batch, {{ config.channels }}, height, width) in [0, 1]

It was built as `{{ config }}`.
"""


def is_hosted(directory: str | os.PathLike[str], revision: str | None) -> bool:
    """Whether ``directory`` is the text "user/name" and no path here; where "user" is one, a ``revision`` decides."""
    if not isinstance(directory, str) or not NAME.fullmatch(directory) or os.path.exists(directory):
        return False
    if revision is None:
        if os.path.isdir(os.path.dirname(directory)):
            raise FileNotFoundError(
                f"{directory} is no directory: name a run, as vqkit train leaves it. For the model of that name on the "
                "Hugging Face hub give a revision, as in revision='main'."
            )
        # Who mistyped a path would else wait for the network and not know why.
        logging.getLogger("vqkit").warning("%s is no directory here: asking the Hugging Face hub for it.", directory)
    return True


def hosted() -> Any:
    """The mixin's class: of what writes a directory, to push it; what it pulls is the ``content`` of one, a path."""
    from huggingface_hub import ModelHubMixin, hf_hub_download

    class Hosted(ModelHubMixin, library_name="vqkit", tags=["vq-vae"], model_card_template=_CARD):
        def __init__(self, content: Any) -> None:
            self.content = content

        def _save_pretrained(self, save_directory: Path) -> None:
            self.content(save_directory)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, **options: Any) -> Hosted:
            config = Path(hf_hub_download(model_id, "config.json", **options))
            options["revision"] = config.parent.name  # both files of one commit
            hf_hub_download(model_id, "model.safetensors", **options)
            return cls(config.parent)

    return Hosted


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """What goes wrong with the repository ``name``, as errors of Python that name it in one line."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise ImportError(
            f"{name} is taken for a model on the Hugging Face hub, which needs: pip install 'vqkit[hub]'."
        ) from None
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"{name} is neither a directory nor a model on the hub ({reason})") from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(f"{name}: the Hugging Face hub did not answer, or refused ({reason})") from None
    except (ValueError, TypeError, AttributeError) as error:  # the latter two: the mixin's, for a foreign config.json
        raise ValueError(f"{name} on the Hugging Face hub is no model for this vqkit: {error}") from error
