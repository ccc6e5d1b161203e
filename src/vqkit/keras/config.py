"""Objects in slots as a Keras config holds them: the text that they print; of codes that were given, the bytes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from vqkit.codebooks import Given
from vqkit.codebooks.starts import as_numpy
from vqkit.models.objects import parse_object


def written(value: Any) -> Any:
    """``"EMA(decay=0.99)"``; of ``Given`` its arrays as NumPy files in base64, a third larger than their bytes."""
    return {"array": _written(value.array), "n": _written(value.n)} if isinstance(value, Given) else repr(value)


def read(slot: str, value: Any) -> Any:
    """The object that was written; an object is itself."""
    if isinstance(value, dict):
        return Given(_read(value["array"]), _read(value["n"]))
    return parse_object(slot, value) if isinstance(value, str) else value


def _written(array: Any) -> str:
    file = io.BytesIO()
    np.save(file, as_numpy(array), allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _read(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
