"""A run of ``vqkit train`` as a Keras model, and back; no PyTorch is needed for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from vqkit.codebooks import Uniform
from vqkit.keras.vqvae import VQVAE
from vqkit.models.objects import SLOTS, parse_object
from vqkit.models.storage import read_config, replace_file, write_json

_QUANTIZER = "quantizer.quantizer."


def convert(source: str | os.PathLike[str], to: str, out: str | os.PathLike[str]) -> Path:
    """Writes the run ``source`` as a .keras file (``to="keras"``), or a .keras file as a run (``to="torch"``).

    Every tensor keeps its bits both ways (but ages beyond 2^31 on backends that count in 32 bits), and every entry of
    ``config.json`` is kept; checkpoints and metrics of a run stay where they are. Nothing is overwritten, and ``out``
    is written whole or not at all; its path is returned.

    Raises:
        FileExistsError: ``out`` is there already.
        FileNotFoundError: no such run or file, or no directory for ``out``.
        ValueError: ``to`` or the name of ``out`` is none that can be written; a damaged or foreign source.
    """
    source, out = Path(source), Path(out)
    if to not in ("keras", "torch"):
        raise ValueError(f"to is {to!r}; it must be 'keras', for a .keras file, or 'torch', for a run.")
    if to == "keras" and out.suffix != ".keras":
        raise ValueError(f"{out}: a Keras model is written, so the name must end in .keras.")
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists already and is not overwritten: choose another name.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no directory to write into: make it first.")
    if to == "keras":
        model = _read_run(source)
        with tempfile.TemporaryDirectory() as folder:
            model.save(file := Path(folder) / "model.keras")
            replace_file(out, file.read_bytes())
    else:
        _write_run(_read_keras(source), out)
    return out


def _read_run(directory: Path) -> VQVAE:
    entries, path = read_config(directory), directory / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{directory} has no model.safetensors: its training saved no model yet.") from None
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:  # the latter: a dtype that NumPy lacks
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy or train it again.") from None
    if not tensors.pop(_QUANTIZER + "started", 1):
        raise ValueError(f"{path} holds a codebook that has not started: train the run first.")
    seed = int(tensors.pop(_QUANTIZER + "seed", 0)) % 2**64  # NumPy takes no negative one
    try:
        described = {k: parse_object(k, v) if k in SLOTS else v for k, v in entries["model"].items()}
        model = VQVAE.of(**{**described, "start": Uniform(), "seed": seed})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / 'config.json'} does not describe a model ({error}).") from None
    model.run = entries
    for name, variable in _variables(model):
        tensor = tensors.pop(name, np.empty(0))
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        if tensor.shape != tuple(variable.shape):
            wanted = f"{name} is of shape {tensor.shape}, in Keras's order, and not {tuple(variable.shape)}"
            raise ValueError(f"{path} does not fit the model in config.json ({wanted}).")
        if tensor.dtype.kind == "i":  # ages, which some backends count in 32 bits, as far as they reach
            tensor = np.minimum(tensor, np.iinfo(variable.dtype).max)
        variable.assign(tensor)
    if tensors:
        raise ValueError(f"{path} does not fit the model in config.json (it also holds {', '.join(tensors)}).")
    return model


def _read_keras(path: Path) -> VQVAE:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: name a .keras file.")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # a damaged archive raises errors of zipfile, h5py, json and Keras
        reason = " ".join(str(error).split())
        reason = reason[max(reason.find("Could not locate"), 0) :][:160]  # a class that is in no package of ours
        raise ValueError(f"{path} cannot be loaded ({type(error).__name__}: {reason}).") from None
    if not isinstance(model, VQVAE) or model.run is None:
        raise ValueError(
            f"{path} holds a {type(model).__name__} that PyTorch's models do not match: convert what "
            "vqkit.keras.VQVAE.of(...) or vqkit convert made."
        )
    return model


def _write_run(model: VQVAE, out: Path) -> None:
    tensors = {name: ops.convert_to_numpy(ops.stop_gradient(variable)) for name, variable in _variables(model)}
    seed = np.array(model.quantizer.seed or 0, np.uint64)
    tensors |= {_QUANTIZER + "seed": seed.view(np.int64), _QUANTIZER + "started": np.array(1)}
    for name, tensor in tensors.items():
        kind = np.float32 if tensor.dtype.kind == "f" else np.int64
        tensors[name] = np.array(tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor, kind, order="C")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=out.name) as folder:
        whole = Path(folder, "run")
        whole.mkdir()
        replace_file(whole / "model.safetensors", save(tensors))
        write_json(whole / "config.json", dict(model.run or {}))
        whole.rename(out)


def _variables(model: VQVAE) -> Iterator[tuple[str, Any]]:
    """Each variable and its name in PyTorch."""
    for part in ("encoder", "decoder"):
        for layer in getattr(model, part).layers:
            for variable in layer.weights:
                last = "weight" if variable.name == "kernel" else variable.name
                yield f"{part}.{layer.name.replace('_', '.')}.{last}", variable
    for name in ("codebook", "n", "codebook_usage", "idle", "steps"):
        yield _QUANTIZER + name.removeprefix("codebook_"), getattr(model.quantizer, name)
