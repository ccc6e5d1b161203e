"""The ways to search that this machine has, and how a test takes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.absent import absent
from vqkit.functional import native

PATHS = ("avx2", "portable", "chunked")
_best = native.instructions  # before any test takes another


def library_paths() -> tuple[str, ...]:
    """The instructions of the C++ library that this processor has; without a library the test ends here."""
    best = _best()
    if best is None:
        absent("the C++ library is not built: python hatch_build.py")
    return ("portable",) if best == "portable" else (best, "portable")


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the search goes ``path``; only the choice is changed, by what it asks."""
    if path == "chunked":
        monkeypatch.setattr(native, "instructions", lambda: None)
        return
    if path not in library_paths():
        pytest.skip(f"this processor has no {path}")
    monkeypatch.setattr(native, "instructions", lambda: path)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
