"""Compiles the search for CPUs (kernel/) into a shared library inside the package, where there is a C++ compiler.

    python hatch_build.py        # for a checkout that is used in place

``pip install`` runs it. Without a compiler the package installs all the same and searches with PyTorch. The library
knows nothing of Python and PyTorch: one build serves every version of both.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
KERNEL, LIBRARY = ROOT / "kernel", ROOT / "src" / "vqkit" / "functional" / "libvqkit.so"
# No -ffast-math: it would make every number below 1e-38 a zero, for the whole process. No -march=native: the library
# asks the processor what it has.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
CONTRACT = {"nearest.cpp": "off"}  # what decides must round as the definition does; what only scores may fuse


class NotBuilt(RuntimeError):
    """There is no compiler, or it refused."""


def build(library: Path | None = None, flags: Iterable[str] = (), compiler: str | None = None) -> Path:
    """Compiles with OpenMP, or, where the compiler has none, for one thread.

    Raises:
        NotBuilt: with the compiler's own words.
    """
    library = library or LIBRARY
    given = compiler or os.environ.get("CXX")
    command = shlex.split(given) if given else [_found()]
    with tempfile.TemporaryDirectory() as objects:
        try:
            made = _compiled(command, Path(objects), (*flags, "-fopenmp"))
        except NotBuilt:
            made = _compiled(command, Path(objects), (*flags, "-Wno-unknown-pragmas"))
        beside = library.with_suffix(f".{os.getpid()}")  # who loads it sees all of it or none
        shutil.copyfile(made, beside)
        os.replace(beside, library)
    return library


def digest() -> str:
    """Of the sources, which the library carries: ``vqkit_sources()``."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(KERNEL.iterdir()))).hexdigest()[:12]


def _found() -> str:
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise NotBuilt("none of c++, g++ and clang++ is on the PATH, and CXX is not set")


def _compiled(command: list[str], objects: Path, flags: tuple[str, ...]) -> Path:
    target = _run([*command, "-dumpmachine"])
    avx2 = target.lower().startswith(("x86_64", "amd64"))

    def one(name: str) -> str:
        instructions = [f'-DVQKIT_SOURCES="{digest()}"', *(["-DVQKIT_AVX2"] if avx2 else [])]
        instructions += ["-mavx2", "-mfma"] if name == "avx2.cpp" else []
        made = str(objects / f"{name}.o")
        contract = f"-ffp-contract={CONTRACT.get(name, 'fast')}"
        _run([*command, *FLAGS, contract, *flags, *instructions, "-c", str(KERNEL / name), "-o", made])
        return made

    with ThreadPoolExecutor() as pool:
        made = list(pool.map(one, ["portable.cpp", "nearest.cpp", "step.cpp", *(["avx2.cpp"] if avx2 else [])]))
    linked = objects / "linked.so"
    _run([*command, "-shared", *flags, *made, "-o", str(linked)])
    return linked


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise NotBuilt(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise NotBuilt(f"{shlex.join(command)}\n{done.stderr.strip()}")
    return done.stdout


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, where hatchling need not be
    BuildHookInterface = object  # type: ignore[assignment, misc]


class Hook(BuildHookInterface):
    """What hatchling calls for a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            build()
        except (NotBuilt, OSError) as error:
            LIBRARY.unlink(missing_ok=True)  # of other sources
            self.app.display_warning(f"vqkit installs without its C++ search: {error}")
            return
        build_data["artifacts"].append(str(LIBRARY.relative_to(ROOT)))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    try:
        print(build())
    except NotBuilt as error:
        sys.exit(f"not built: {error}")
