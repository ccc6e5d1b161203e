"""Runs that are killed, cut and resumed: the weights become those of a run that nothing ever happened to.

Every failure here is a real one, in a process of its own. Importing PyTorch takes such a process seconds, so one
process imports everything and forks the others, which then run the command line as it is.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests.command import ENVIRONMENT, Said, write_images
from vqkit.models import ModelConfig, Patchwise
from vqkit.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9, which are of Unix")

# Checkpoints after 4, 8, 12 and 14 steps, rows after 3, 4, 6, 8, 9, 12 and 14.
STEPS = 14
TINY = (
    *("--steps", str(STEPS), "--set", "save_every=4", "log_every=3", "crop=16", "batch=2", "codebook_size=16", "dim=4"),
    "architecture=Convolutional(hidden=4, residual=2, blocks=1)",
)

_NURSERY = """
import gc, json, os, sys
import PIL.Image, PIL.ImageOps, skimage.metrics, torch._dynamo, vqkit.cli, vqkit.runs
from vqkit.__main__ import main
PIL.Image.init()
gc.freeze()
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        pid, status = os.waitpid(task["wait"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    os.setpgid(0, 0)
    for number, path in enumerate((os.devnull, task["out"], task["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(task["directory"])
    sys.argv = ["vqkit", *task["arguments"]]
    exec(task["code"])
    main()
"""


class Child:
    """A command that is running."""

    def __init__(self, pid: int, out: Path, err: Path) -> None:
        self.pid, self._out, self._err = pid, out, err

    def wait(self, seconds: float = 60) -> Said:
        until = time.monotonic() + seconds
        while (code := _ask({"wait": self.pid})) is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self._out.read_text()}{self._err.read_text()}")
            time.sleep(0.01)
        return Said(code, self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8"))

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Until something is there that the command was to make."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self._err.read_text()
            time.sleep(0.002)


@cache
def _nursery() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def _ask(task: dict[str, Any]) -> Any:
    nursery = _nursery()
    assert nursery.stdin and nursery.stdout
    print(json.dumps(task), file=nursery.stdin, flush=True)
    return json.loads(nursery.stdout.readline())


def start(directory: Path, *arguments: object, code: str = "") -> Child:
    """``vqkit`` with these arguments in ``directory``; ``code`` runs in its process before it."""
    out, err = (directory / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
    task = {"out": str(out), "err": str(err), "directory": str(directory), "code": code}
    return Child(_ask({**task, "arguments": [str(argument) for argument in arguments]}), out, err)


def vqkit(directory: Path, *arguments: object, code: str = "") -> Said:
    return start(directory, *arguments, code=code).wait()


# --- what is compared ---------------------------------------------------------------------------------------------


def sha(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def rows(run: Path) -> list[dict[str, float]]:
    """Of ``metrics.jsonl``, every line of which has to be whole, but for the speed, which no run repeats."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def checkpoints(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints")) if (run / "checkpoints").is_dir() else []


def at_step(number: int, what: str) -> str:
    """Code that does something just before a process learns for the so manieth time."""
    return (
        "import itertools, os, resource, signal, time, torch\n"
        "calls, step = itertools.count(1), torch.optim.AdamW.step\n"
        "def hooked(self, *arguments):\n"
        f"    if next(calls) == {number}:\n        {what}\n"
        "    return step(self, *arguments)\n"
        "torch.optim.AdamW.step = hooked\n"
    )


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def while_writing(name: str, stage: str, occasion: int = 1) -> str:
    """Code that kills its process in the middle of writing a file, just before it gets its name, or just after."""
    return (
        "import io, itertools, os, pathlib, signal\n"
        "seen, replace, opened = itertools.count(1), os.replace, pathlib.Path.open\n"
        f"def this(path): return {name!r} in os.path.basename(path) and next(seen) == {occasion}\n"
        "class Half(io.FileIO):\n"
        f"    def write(self, data): super().write(data[:len(data) // 2]); {DIE}\n"
        "def halved(path, mode='r', *arguments, **options):\n"
        "    return Half(path, mode) if 'w' in mode and this(path) else opened(path, mode, *arguments, **options)\n"
        "def killed(source, target):\n"
        f"    now = this(target)\n    if now and {stage == 'before'}: {DIE}\n"
        f"    replace(source, target)\n    if now: {DIE}\n"
        + ("pathlib.Path.open = halved" if stage == "half" else "os.replace = killed")
    )


def undisturbed(place: Path) -> Path:
    """Where a run to which nothing happened lies beside its images."""
    said = vqkit(place, "train", write_images(place / "images"), "--out", "run", *TINY)
    assert said.code == 0 and said.err == ""
    assert [row["step"] for row in rows(place / "run")] == [3, 4, 6, 8, 9, 12, 14]
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def require_same(run: Path, place: Path, *also: str) -> None:
    """The weights and rows of the undisturbed run, its files, and no others."""
    undisturbed = place / "run"
    assert sha(run) == sha(undisturbed)
    assert rows(run) == rows(undisturbed)
    assert checkpoints(run) == sorted(["00000012.safetensors", "00000014.safetensors", *also])
    for name in ("00000012.safetensors", "00000014.safetensors"):
        ours, theirs = (load_file(directory / "checkpoints" / name) for directory in (run, undisturbed))
        assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    assert set(os.listdir(run)) == set(os.listdir(undisturbed))


def killed_at(place: Path, run: Path, step: int) -> Path:
    said = vqkit(run.parent, "train", place / "images", "--out", run, *TINY, code=at_step(step, DIE))
    assert said.code == -signal.SIGKILL
    return run


# --- kill -9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(2, 7, 6), (14,)], ids=str)
def test_killed_in_a_step(place: Path, tmp_path: Path, steps: tuple[int, ...]) -> None:
    """Before the first checkpoint, between two, in the last step; and again in what was resumed."""
    run = killed_at(place, tmp_path / "run", steps[0])
    for step in steps[1:]:
        assert vqkit(tmp_path, "train", "--resume", run, code=at_step(step, DIE)).code == -signal.SIGKILL
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and said.err == "" and "14 steps in" in said.out
    require_same(run, place)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_from_outside(place: Path, tmp_path: Path, workers: int) -> None:
    """At a moment that nobody chose, and resumed at once: neither lock nor workers of the dead are in the way."""
    run = tmp_path / "run"
    slow = at_step(12, "time.sleep(60)")  # lest it be done before this process looks
    training = start(tmp_path, "train", place / "images", "--out", run, *TINY, "--workers", workers, code=slow)
    training.wait_for(lambda: (run / "checkpoints" / "00000008.safetensors").exists())
    os.kill(training.pid, signal.SIGKILL)
    assert training.wait().code == -signal.SIGKILL
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and said.err == "" and "going on after step" in said.out
    require_same(run, place)


def test_killed_while_saving(place: Path, tmp_path: Path) -> None:
    """A checkpoint's files half written, whole but without their names, and named."""
    run = tmp_path / "run"
    vqkit(tmp_path, "train", place / "images", "--out", run, *TINY, "save_every=1", code=at_step(2, DIE))
    for name, stage, occasion in [
        *(("0000", stage, 1) for stage in ("half", "before", "after")),
        *(("model.safetensors", stage, 1) for stage in ("half", "after")),
        ("config.json", "half", 2),  # which is written at the start as well
    ]:
        said = vqkit(tmp_path, "train", "--resume", run, code=while_writing(name, stage, occasion))
        assert (said.code, said.err) == (-signal.SIGKILL, ""), (name, stage)
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and said.err == ""
    assert sha(run) == sha(place / "run")
    assert checkpoints(run) == ["00000013.safetensors", "00000014.safetensors"]
    assert set(os.listdir(run)) == set(os.listdir(place / "run"))


@pytest.mark.parametrize(
    ("name", "stage", "occasion", "also"),
    [
        ("00000014.safetensors", "before", 1, []),
        ("00000014.safetensors", "after", 1, ["00000008.safetensors"]),  # the one that was to be removed next
        ("model.safetensors", "before", 4, []),
        ("report.html", "half", 1, []),
    ],
)
def test_killed_while_saving_for_the_last_time(
    place: Path, tmp_path: Path, name: str, stage: str, occasion: int, also: list[str]
) -> None:
    """No step may be left to learn in, yet the weights have to become the last ones."""
    run = tmp_path / "run"
    code = while_writing(name, stage, occasion)
    said = vqkit(tmp_path, "train", place / "images", "--out", run, *TINY, code=code)
    assert (said.code, said.err) == (-signal.SIGKILL, "")
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and said.err == ""
    require_same(run, place, *also)


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(place: Path) -> Path:
    """A run that was killed with checkpoints after 4 and 8 steps."""
    return killed_at(place, place / "stopped", 11)


def truncated(length: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(length * len(data))]


def flipped(place: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        cut = int(place * len(data))
        return data[:cut] + bytes([data[cut] ^ 1]) + data[cut + 1 :]

    return damage


def noise(data: bytes) -> bytes:
    return random.Random(0).randbytes(len(data))


@pytest.mark.parametrize(
    "damage", [truncated(0), truncated(0.7), flipped(0.6), noise], ids=["empty", "cut", "bit", "noise"]
)
def test_a_damaged_checkpoint_is_set_aside(
    place: Path, stopped: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    newest = run / "checkpoints" / "00000008.safetensors"
    newest.write_bytes(damaged := damage(newest.read_bytes()))
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and "going on after step 4\n" in said.out
    assert said.err.startswith(f"vqkit: {newest} is damaged (") and said.err.count("\n") == 1
    assert (run / "checkpoints" / "00000008.damaged").read_bytes() == damaged
    require_same(run, place, "00000008.damaged")


def test_without_a_whole_checkpoint_a_run_begins_anew(place: Path, stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(truncated(0.5)(path.read_bytes()))
    said = vqkit(tmp_path, "train", "--resume", run)
    assert said.code == 0 and "going on" not in said.out
    assert [line.partition(" is damaged ")[0][-20:] for line in said.err.splitlines()] == [
        "00000008.safetensors", "00000004.safetensors"
    ]  # fmt: skip
    require_same(run, place, "00000004.damaged", "00000008.damaged")


def test_no_damage_is_loaded(tmp_path: Path) -> None:
    """Wherever a bit flips or a file ends, a checkpoint is refused, or loads as what it was."""
    model = ModelConfig(architecture=Patchwise(hidden=2), dim=2, codebook_size=4).build(seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    saved = Checkpoints(tmp_path, model, optimizer, torch.amp.GradScaler("cpu"))
    saved.save(5)
    path = tmp_path / "checkpoints" / "00000005.safetensors"
    whole = path.read_bytes()
    model_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begins = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    flips = [*range(8, 168), *draw.sample(range(begins), 60), *draw.sample(range(begins, len(whole)), 40)]
    damages = [flipped((place + 0.5) / len(whole)) for place in flips]
    damages += [truncated(draw.random()) for _ in range(30)]
    refused = 0
    for damage in damages:
        path.write_bytes(damage(whole))
        try:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                step = saved.restore()
        except ValueError as error:
            assert "is of format" in str(error)
            step = 0
        refused += step == 0
        assert step in (0, 5)
        assert all(torch.equal(tensor, model_before[name]) for name, tensor in model.state_dict().items())
        for left in path.parent.iterdir():
            left.unlink()
    assert refused > 0.9 * len(damages)


# --- what lies in a run's directory -------------------------------------------------------------------------------


def test_nothing_is_pickled(place: Path, stopped: Path) -> None:
    """A pickle begins with \\x80, a zip, which torch.save makes, with PK; and no line of the package could read one."""
    for run in (place / "run", stopped):
        for path in (path for path in run.rglob("*") if path.is_file()):
            assert path.suffix in (".json", ".jsonl", ".safetensors", ".html", ".lock") or path.name == ".lock"
            assert not path.read_bytes().startswith((b"\x80", b"PK")), path
    package = Path(Checkpoints.save.__code__.co_filename).parent.parent
    for source in {*package.rglob("*.py")} - {package / "gradients/audit/state.py"}:  # it asks this of foreign layers
        text = source.read_text(encoding="utf-8")
        assert not re.search(
            r"torch\.(load|save)\b|^\s*(import|from) (pickle|dill|joblib|shelve|marshal)", text, re.M
        ), source
