"""Every framework keeps one contract, each in a process of its own; here they are shown and counted."""

from __future__ import annotations

import os
import re
from concurrent.futures import Future

import pytest

from tests.framework_processes import Done, missing
from tests.frameworks import PROCESSES


@pytest.mark.parametrize("framework", PROCESSES)
def test_framework_keeps_the_contract(
    framework: str, processes: dict[str, Future[Done[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    if lacking := missing(framework):
        told = f"{' and '.join(lacking)} not installed: pip install 'vqkit[test]'"
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
