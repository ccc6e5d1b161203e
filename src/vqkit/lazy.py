"""Names of a package that are loaded when they are first used, so that to import it imports no framework."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def names(package: str, homes: dict[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of ``package`` (PEP 562), whose names live in the modules ``homes``."""
    home = {name: module for module, exported in homes.items() for name in exported}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return load, list(home)
