"""The processes in which other frameworks are tested, for ``test_frameworks.py``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import vqkit
from tests.frameworks import PROCESSES

ROOT = Path(__file__).parent.parent
TEST = "test_framework_keeps_the_contract"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(vqkit.__file__).parent.parent),
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "COLUMNS": "200",  # so that no reason of a skip is cut
}
Done = subprocess.CompletedProcess


def missing(framework: str) -> list[str]:
    return [name for name in PROCESSES[framework].needs if importlib.util.find_spec(name) is None]


def _run(framework: str, started: list[subprocess.Popen[str]]) -> Done[str]:
    paths = ("tests/frameworks", *PROCESSES[framework].sources)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *paths, "--framework", framework, "-rs", "-p", "no:cacheprovider"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    started.append(process)
    out, err = process.communicate(timeout=1800)
    return Done(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def processes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Done[str]]]]:
    """All that are asked for, two at a time; no other test runs meanwhile, since some of those measure time."""
    items = [item for item in request.session.items if item.name.startswith(f"{TEST}[")]
    asked = [item.callspec.params["framework"] for item in items]  # type: ignore[attr-defined]
    started: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(_run, name, started) for name in asked if not missing(name)}
    pool.shutdown(wait=False, cancel_futures=True)
    for process in started:  # of a session that ends early
        process.kill()
    pool.shutdown()
