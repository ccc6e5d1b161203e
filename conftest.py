"""Which tests run in which process: JAX, TensorFlow and Keras run in none but their own (``tests/frameworks``)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.frameworks import OWNED, PROCESSES

ROOT = Path(__file__).parent
SUITE = ROOT / "tests" / "frameworks"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--framework", choices=sorted(PROCESSES), help="run tests/frameworks, in this framework alone")


def pytest_configure(config: pytest.Config) -> None:
    framework = config.getoption("--framework")
    if framework is not None:
        os.environ.update(PROCESSES[framework].environment)  # read when the framework is imported
        for line in PROCESSES[framework].warnings:
            config.addinivalue_line("filterwarnings", line)
    elif any(SUITE in (path := Path(arg.split("::")[0]).resolve()).parents or path == SUITE for arg in config.args):
        raise pytest.UsageError(f"tests/frameworks runs in one framework: --framework {' | '.join(PROCESSES)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collecting a file imports it, for its doctests."""
    framework = config.getoption("--framework")
    owns = PROCESSES[framework].owns if framework else ()
    if SUITE in collection_path.parents:
        word = collection_path.stem.removeprefix("test_").split("_")[0]
        helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
        return framework is None or helper or (word in OWNED and word not in owns) or None
    room = collection_path.relative_to(ROOT).parts[2:3] if ROOT / "src" in collection_path.parents else ()
    if room in (("jax",), ("keras",)):
        backend = collection_path.stem.removeprefix("on_") if collection_path.stem.startswith("on_") else room[0]
        return not {room[0], backend} <= set(owns) or None
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """In a framework's process, the line that ``tests/test_frameworks.py`` reads."""
    framework = config.getoption("--framework")
    if framework is not None:
        counts = [f"{len(terminalreporter.stats.get(kind, ()))} {kind}" for kind in ("passed", "skipped", "failed")]
        modules = [name for name in ("jax", "keras", "tensorflow", "torch") if name in sys.modules]
        terminalreporter.write_line(f"{framework}: {', '.join(counts)}; imported: {', '.join(modules)}")
