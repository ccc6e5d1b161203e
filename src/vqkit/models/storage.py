"""How a run's directory is written, each file whole or not at all, and its ``config.json`` read."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

FORMAT = 1


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a run directory, of a format that this version reads."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory: name a run, as vqkit train leaves it.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        version = entries["format"]
    except FileNotFoundError:
        raise ValueError(f"{directory} has no config.json: it is no run of vqkit train.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not of vqkit ({error}).") from None
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}; this vqkit reads format {FORMAT}: install a newer one.")
    return entries


def write_json(path: Path, entries: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(entries, indent=2) + "\n").encode())


def replace_file(path: Path, data: bytes) -> None:
    """Writes ``path`` whole or not at all: a full disk, a crash or a power cut leaves what stood there."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the bytes
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to tell
            partial.unlink()
        if isinstance(error, OSError) and error.errno and not error.filename:  # writing names no file
            error.filename = str(path)
        raise
    with suppress(OSError):  # Windows opens no directory, and some network file systems sync none
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
