"""How runs end that do not go well, and how they are gone on with; see test_resume for those that are killed."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import ENVIRONMENT, call, write_images
from tests.test_resume import (
    DIE,
    STEPS,
    TINY,
    at_step,
    checkpoints,
    place,
    require_same,
    rows,
    sha,
    start,
    stopped,
    vqkit,
    while_writing,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9, which are of Unix")


# --- how a run is resumed -----------------------------------------------------------------------------------------


def test_more_steps(place: Path, tmp_path: Path) -> None:
    """A finished run is not trained again, unless more is asked for, which config.json then keeps."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "report.html").unlink()
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and said.err == "" and "14 steps in" in said.out
    require_same(run, place)
    said = vqkit(tmp_path, "train", "--resume", run, "--steps", 17, "--set", "log_every=1", "learning_rate=1e-4")
    assert said.code == 0 and said.err == "" and "going on after step 14" in said.out
    assert sha(run) != sha(place / "run") and checkpoints(run) == ["00000016.safetensors", "00000017.safetensors"]
    assert [row["step"] for row in rows(run)] == [3, 4, 6, 8, 9, 12, 14, 15, 16, 17]
    training = json.loads((run / "config.json").read_text(encoding="utf-8"))["training"]
    assert (training["steps"], training["log_every"], training["learning_rate"]) == (17, 1, 1e-4)


def test_images_may_move(place: Path, stopped: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(stopped, run)
    shutil.copytree(place / "images", moved)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}), encoding="utf-8")
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 2 and f"{tmp_path / 'gone'}, which is gone: name the DATA" in said.err
    said = vqkit(tmp_path, "train", "moved", "--resume", "run")
    assert said.code == 0 and said.err == ""
    require_same(run, place)
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["data"] == str(moved)


def entry(*path: str, to: object) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        inner = config
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to
        (run / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return change


def newer_checkpoint(run: Path) -> None:
    path = run / "checkpoints" / "00000008.safetensors"
    data = path.read_bytes()
    assert data.count(b'"format":"1"') == 1
    path.write_bytes(data.replace(b'"format":"1"', b'"format":"2"'))


def other_images(run: Path) -> None:
    write_images(run.parent / "other", ["a.png"])


@pytest.mark.parametrize(
    ("change", "arguments", "code", "words"),
    [
        (entry("format", to=2), [], 1, "config.json is of format 2; this"),
        (newer_checkpoint, [], 1, "00000008.safetensors is of format 2; this"),
        (entry("training", "momentum", to=1), [], 1, "config.json does not describe a run of this version (--set has no key 'momentum'"),
        (entry("model", "levels", to=1), [], 1, "config.json does not describe a run of this version (the model's"),
        (entry("hardware", "tpu", to=1), [], 1, "config.json does not describe a run of this version ("),
        (lambda run: (run / "config.json").unlink(), [], 1, "has no config.json: it is no run of vqkit train"),
        (lambda run: (run / "config.json").write_text("{"), [], 1, "config.json is damaged or not of vqkit"),
        (other_images, ["other"], 1, "other does not hold the images that"),
        (None, ["--set", "dim=5"], 1, "--set dim=5 changes the model of"),
        (None, ["--set", "update=Gradient()", "crop=32"], 1, "--set update=Gradient() crop=32 changes the model of"),
        (None, ["--set", "dimm=5"], 1, "--set has no key 'dimm'"),
        (None, ["--set", "learning_rate=-1"], 1, "learning_rate is -1"),
        (None, ["--device", "abacus"], 1, "device is 'abacus'"),
        (None, ["--recipe", "photos"], 2, "--resume goes on with a run as it was begun: leave out --recipe"),
        (None, ["--out", "new"], 2, "--resume goes on with a run as it was begun: leave out --recipe and --out"),
        (None, ["--resume", "nowhere"], 2, "nowhere is no directory"),
        (None, ["--resume", "run/config.json"], 2, "run/config.json is no directory"),
        (None, ["--resume", ""], 1, "has no config.json"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused(
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object] | None,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    """In one line, and no file changes."""
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    shutil.copytree(stopped, run)
    if change is not None:
        change(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = call(capsys, "train", "--resume", "run", *arguments)
    assert (said.code, said.err.count("\n")) == (code, 1) and words in said.err, said.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- a full disk --------------------------------------------------------------------------------------------------


def at_most(size: str) -> str:
    """No file may become larger than that many bytes; writing more fails, as it does where a disk is full."""
    return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))"


def require_loadable(run: Path, step: int) -> None:
    """Nothing half written, and what was saved at that step."""
    assert not [path for path in run.rglob("*") if "partial" in path.name or "tmp" in path.name]
    tensors = load_file(run / "checkpoints" / f"{step:08}.safetensors")
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(tensors[f"model.{name}"], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("limit", "step", "last"),
    [
        ("30_000", 1, 0),  # the first checkpoint
        ("30_000", 7, 4),  # the second one
        ("os.path.getsize('run/metrics.jsonl') + 10", 10, 8),  # amid a row of metrics
        ("1_000", 14, 12),  # the last row, which comes before the last checkpoint
    ],
)
def test_no_room(place: Path, tmp_path: Path, limit: str, step: int, last: int) -> None:
    said = vqkit(tmp_path, "train", place / "images", "--out", "run", *TINY, code=at_step(step, at_most(limit)))
    assert said.code == 1 and said.err.count("\n") == 1
    assert said.err.startswith("vqkit: ") and "File too large" in said.err and "vqkit train --resume run" in said.err
    if last:
        assert f"step {last} is saved" in said.err
        require_loadable(tmp_path / "run", last)
    said = vqkit(tmp_path, "train", "--resume", "run")
    assert said.code == 0 and said.err == ""
    require_same(tmp_path / "run", place)
