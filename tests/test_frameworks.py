"""Every framework keeps one contract, each in a process of its own; here they are started, shown and counted."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import vqkit
from tests.frameworks import PROCESSES

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(vqkit.__file__).parent.parent),
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "COLUMNS": "200",  # so that no reason of a skip is cut
}
Done = subprocess.CompletedProcess


def _run(framework: str) -> Done[str]:
    paths = ("tests/frameworks", *PROCESSES[framework].sources)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *paths, "--framework", framework, "-rs", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, timeout=400, env=ENVIRONMENT,
    )  # fmt: skip


def _missing(framework: str) -> list[str]:
    return [name for name in PROCESSES[framework].needs if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def processes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Done[str]]]]:
    """All that are asked for, two at a time."""
    items = [item for item in request.session.items if item.name.startswith("test_framework_keeps_the_contract[")]
    asked = [item.callspec.params["framework"] for item in items]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(_run, name) for name in asked if not _missing(name)}


@pytest.mark.parametrize("framework", PROCESSES)
def test_framework_keeps_the_contract(
    framework: str, processes: dict[str, Future[Done[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    if missing := _missing(framework):
        told = f"{' and '.join(missing)} not installed: pip install 'vqkit[test]'"
        pytest.fail(told) if "CI" in os.environ else pytest.skip(told)
    done = processes[framework].result()
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(rf"^{framework}: (\d+) passed, (\d+) skipped, 0 failed; imported: (.*)$", done.stdout, re.M)
    assert found, done.stdout
    reasons = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    with capsys.disabled():
        print("", found[0], *reasons, sep="\n")
    assert int(found[1]) > 0, "nothing was tested"
    foreign = set(PROCESSES[framework].foreign) & set(found[3].split(", "))
    assert not foreign, f"{framework} imports {foreign}"
    assert bool(reasons) == (int(found[2]) > 0), "what was skipped is not shown"
