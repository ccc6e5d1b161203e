"""One codebook in a file that every framework reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vqkit import __version__
from vqkit.codebooks import Given
from vqkit.models.storage import replace_file

_KIND, _VERSION, _METRIC = "vqkit codebook", "1", "euclidean"


def save_codebook(path: str | os.PathLike[str], codebook: Any, n: Any = None) -> None:
    """Writes a codebook as one safetensors file, from which ``load_codebook`` starts a quantizer of any framework.

    ``codebook`` is a quantizer of PyTorch or Keras, a model that holds one as its ``quantizer``, a ``Codebook`` of JAX
    or an array (K, D). ``n`` (K,), vectors per step under EMA, is the quantizer's, or 1 for an array. The file holds
    both, in float64 where the codebook is, else in float32; a file that stands there is replaced.

    Raises:
        ValueError: codes that are not finite, are all zero (they wait for a start from data), or no (K, D) array.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "codebook.safetensors")
    >>> save_codebook(file, np.eye(4, 3))
    >>> load_codebook(file).array.shape
    (4, 3)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no directory to write into: make it first.")
    holder = codebook
    while hasattr(holder, "quantizer"):
        holder = holder.quantizer
    codes = _array(getattr(holder, "codebook", getattr(holder, "codes", holder)))
    if len(codes.shape) != 2:
        raise ValueError(
            f"codebook ({type(codebook).__name__}) has shape {tuple(codes.shape)}; it must be (K, D), each row a code. "
            "Of a model pass the quantizer itself, such as model.layers[1]; a Keras layer has its codes once built: "
            "call it, or give it dim= and call layer.build((None, dim))."
        )
    given = Given(codes, _array(getattr(holder, "n", 1.0) if n is None else n))
    codes, n = given.codebook(codes.shape[0], codes.shape[1], rng=None)
    if codes.size and not codes.any():
        raise ValueError("codebook holds zeros alone: it has not started; train it first, or call vqkit.start.")
    sizes = {"codebook_size": str(codes.shape[0]), "dim": str(codes.shape[1])}
    metadata = {"format": f"{_KIND} {_VERSION}", "metric": _METRIC, **sizes, "vqkit": __version__}
    replace_file(path, save({"codebook": codes, "n": n}, metadata))


def load_codebook(path: str | os.PathLike[str]) -> Given:
    """What ``save_codebook`` wrote, for the ``start`` of a quantizer of any framework, bit for bit.

        vqkit.VectorQuantizer(dim=64, codebook_size=512, start=vqkit.load_codebook("codebook.safetensors"))

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged or foreign file, a newer format, another metric, codes that are not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file: name one that vqkit.save_codebook wrote.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # the latter: a dtype that NumPy lacks
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): save the codebook again.") from None
    kind, _, version = metadata.get("format", "").rpartition(" ")
    if kind != _KIND:
        raise ValueError(f"{path} is no codebook file: write one with vqkit.save_codebook(path, quantizer).")
    if version != _VERSION:
        raise ValueError(f"{path} is of format {version}; this vqkit reads format {_VERSION}: install a newer one.")
    if metadata.get("metric") != _METRIC:
        raise ValueError(
            f"{path} is for the metric {metadata.get('metric')!r}; vqkit's quantizers take {_METRIC!r} codes alone: "
            "for cosine codes normalize the codes and z yourself, and save the codes anew with vqkit.save_codebook."
        )
    codes = tensors.get("codebook", np.empty(0))
    named = metadata.get("codebook_size"), metadata.get("dim")
    if tensors.keys() != {"codebook", "n"} or codes.ndim != 2 or named != tuple(map(str, codes.shape)):
        raise ValueError(f"{path} does not hold the codebook and the n that it says: save the codebook again.")
    given = Given(codes, tensors["n"])
    try:
        given.codebook(codes.shape[0], codes.shape[1], rng=None)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return given


def _array(of: Any) -> Any:
    """A tensor of PyTorch as it is, which ``Given`` reads; anything else as NumPy's."""
    of = getattr(of, "value", of)  # the tensor in a Keras variable
    return of if hasattr(of, "detach") else np.asarray(of)
