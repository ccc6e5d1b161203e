"""The backend's own module, chosen when ``vqkit.keras`` is imported, as Keras chooses its backend."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import keras

_HOMES = {"tensorflow": "on_tensorflow", "jax": "on_jax", "torch": "on_torch"}

if keras.backend.backend() not in _HOMES:
    raise ImportError(
        f"vqkit.keras does not run on Keras's {keras.backend.backend()} backend: set KERAS_BACKEND to one of "
        f"{', '.join(_HOMES)} before keras is imported."
    )
backend: Any = import_module(f"vqkit.keras.{_HOMES[keras.backend.backend()]}")
