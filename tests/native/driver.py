"""Compiles the driver with a library, and runs the cases through it."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import hatch_build
import numpy as np

from tests.absent import absent
from tests.native.cases import Case

HERE = Path(__file__).parent


def write(path: Path, cases: Iterable[Case]) -> list[str]:
    """Writes the file that the driver reads; gives the names, as it speaks of numbers."""
    names = []
    with path.open("wb") as file:
        for name, z, codebook, expected in cases:
            bad = expected is None
            head = [z.itemsize, *z.shape[:1], *codebook.shape, int(bad)]
            answers = np.zeros(len(z)) if expected is None else expected
            for array in (np.array(head, np.int64), z, codebook, answers.astype(np.int64)):
                file.write(array.tobytes())
            names.append(name)
    return names


def compiled(folder: Path, flags: tuple[str, ...], compiler: str | None = None) -> Path:
    """The driver beside a library, both with ``flags``."""
    try:
        library = hatch_build.build(folder / "libvqkit.so", (*flags, "-Werror"), compiler)
    except hatch_build.NotBuilt as error:
        absent(f"the C++ library does not build: {error}")
    command = [*shlex.split(compiler or os.environ.get("CXX") or "c++"), *flags, "-std=c++17", "-Wall", "-Werror"]
    driver = folder / "driver"
    subprocess.run(
        [*command, str(HERE / "driver.cpp"), str(library), f"-Wl,-rpath,{folder}", "-o", str(driver)], check=True
    )
    return driver


def faults(command: list[str], names: list[str]) -> str:
    """What the driver says, with the names of cases instead of their numbers; empty where all is well."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # three threads on two busy cores should not spin
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines == [f"{len(names)} cases, 0 faults"] and not done.stderr:
        return ""
    for i, line in enumerate(lines):
        if line.startswith("case "):
            number, rest = line.removeprefix("case ").split(",", 1)
            lines[i] = f"{names[int(number)]}:{rest}"
    return "\n".join([f"exit status {done.returncode}", *lines[:20], done.stderr[:4000]])
