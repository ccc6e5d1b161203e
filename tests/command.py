"""The command line, called in this process or in one of its own, and small images to call it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import vqkit
from vqkit.cli import run

# A model of 16 codes that trains for three steps in a few milliseconds.
SETTINGS = ("crop=16", "batch=2", "codebook_size=16", "dim=4", "architecture=Patchwise(hidden=8)")
TINY = ("--steps", "3", "--set", *SETTINGS)

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(vqkit.__file__).parent.parent),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "80",
}


class Said(NamedTuple):
    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    """One command in this process."""
    capsys.readouterr()
    try:
        code = run([str(argument) for argument in arguments])
    except SystemExit as exit:  # of the parser
        code = exit.code  # type: ignore[assignment]
    return Said(code, *capsys.readouterr())


def process(*arguments: object, code: str = "", directory: Path | None = None, **environment: str) -> Said:
    """One command in a process of its own; ``code`` in place of ``-m vqkit``."""
    begin = [sys.executable, "-W", "error", *(["-c", code] if code else ["-m", "vqkit"])]
    done = subprocess.run(
        [*begin, *map(str, arguments)],
        capture_output=True,
        cwd=directory,
        env={**ENVIRONMENT, **environment},
        timeout=120,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A ramp with noise on it: as smooth as photos are, and no two alike."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height)[:, None, None] * np.linspace(0.3, 1, width)[:, None]
    return (ramp + rng.integers(0, 50, (height, width, channels))).astype(np.uint8)


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path)
    return path


def write_images(folder: Path, names: Sequence[str] = ("a.png", "b.png", "c.png"), channels: int = 3) -> Path:
    for seed, name in enumerate(names):
        write_image(folder / name, pixels(24 + seed, 32, channels, seed))
    return folder
