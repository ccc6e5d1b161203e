"""Every framework keeps one contract, each in a process of its own; here they are shown and counted."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.absent import absent
from tests.framework_processes import Done, missing
from tests.frameworks import PROCESSES, Process

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("framework", PROCESSES)
def test_framework_keeps_the_contract(
    framework: str, processes: dict[str, Future[Done[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    if lacking := missing(framework):
        absent(f"{' and '.join(lacking)} not installed: pip install 'vqkit[test]'")
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


def test_a_framework_that_is_missing_fails_ci_and_is_skipped_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head, found, _ = (ROOT / ".ci" / "run").read_text(encoding="utf-8").partition("\ncd ")
    assert found, "the lines of .ci/run that set the variables end otherwise"
    monkeypatch.delenv("CI", raising=False)
    said = subprocess.run(["bash", "-c", f"{head}\nprintenv CI"], capture_output=True, text=True, check=False).stdout
    monkeypatch.setitem(PROCESSES, "new", Process("tests.frameworks.new_adapter", ("new",), ("no_such_framework",)))
    for ci, outcome in (("", pytest.skip.Exception), (said.strip(), pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)) as caught:
            test_framework_keeps_the_contract("new", {}, capsys)
        assert caught.type is outcome, f"with CI={ci!r}"
        assert str(caught.value) == "no_such_framework not installed: pip install 'vqkit[test]'"


def test_the_processes_that_contributors_are_told_of_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.findall(r"--framework (\S+) +# or (\S+), \.\.\.$", text, re.M)
    assert told and set(told[0]) <= set(PROCESSES)
