"""`vqkit trace RUN`: which loss of a trained model reaches what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import TINY, call, process, write_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    images = write_images(out.parent / "images")
    assert process("train", images, "--out", out, *TINY).code == 0
    return out


def test_the_trace_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "trace", run)
    assert code == 0
    assert [word in out for word in ("encoder", "decoder", "no path", "straight-through", "EMA(decay=0.99)")] == [
        True
    ] * 5
    code, out, _ = call(capsys, "trace", run, "--json")
    entries = json.loads(out)
    assert entries["routes"]["commitment"]["decoder"]["kind"] == "no path"
    assert 0 < entries["straight_through"]["changes"] <= 320
    assert "EMA(decay=0.99)" in entries["codebook"]


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "trace", tmp_path / "none")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_images_of_another_kind_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gray = write_images(tmp_path / "gray", channels=1)
    code, out, err = call(capsys, "trace", run, gray)
    assert (code, out) == (1, "")
    assert "images of 1 channels" in err and err.count("\n") == 1


def test_other_images_of_its_kind_are_measured(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_images(tmp_path / "other", names=["z.png", "y.png"])
    assert call(capsys, "trace", run, other).code == 0
