"""How runs end that do not go well, and how they are gone on with; see test_resume for those that are killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.command import ENVIRONMENT, SETTINGS, Said, call, pixels, write_images
from tests.test_resume import TINY, at_step, checkpoints, killed_at, require_same, rows, sha, start, undisturbed, vqkit
from vqkit.data import RandomCrops
from vqkit.models import VQVAE
from vqkit.training import Hardware, Watcher, fit, resolve
from vqkit.training.metrics import Row

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9, which are of Unix")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def stopped(place: Path) -> Path:
    """Killed, with checkpoints after 4 and 8 steps."""
    return killed_at(place, place / "stopped", 11)


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
    assert said.code == 2 and f"{tmp_path / 'gone'}, which is gone: vqkit train --resume {run} DATA" in said.err
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
        (entry("training", "momentum", to=1), [], 1, "describe a run of this version (--set has no key 'momentum'"),
        (entry("model", "levels", to=1), [], 1, "config.json does not describe a run of this version (the model's"),
        (entry("hardware", to={}), [], 1, "config.json does not describe a run of this version ("),
        (lambda run: (run / "config.json").unlink(), [], 1, "has no config.json: it is no run of vqkit train"),
        (lambda run: (run / "config.json").write_text("{"), [], 1, "config.json is damaged or not of vqkit"),
        (other_images, ["other"], 1, "other does not hold the images that"),
        (None, ["--set", "dim=5"], 2, "--set dim=5 changes the model of"),
        (None, ["--set", "update=Gradient()", "crop=32"], 2, "--set update=Gradient() crop=32 changes the model of"),
        (None, ["--set", "dimm=5"], 2, "--set has no key 'dimm'"),
        (None, ["--set", "learning_rate=-1"], 2, "learning_rate is -1"),
        (None, ["--device", "abacus"], 2, "device is 'abacus'"),
        (None, ["--recipe", "photos"], 2, "--resume goes on with a run as it was begun: leave out --recipe"),
        (None, ["--out", "new"], 2, "--resume goes on with a run as it was begun: leave out --recipe and --out"),
        (None, ["--resume", "nowhere"], 2, "nowhere is no directory"),
        (None, ["--resume", "run/config.json"], 2, "run/config.json is no directory"),
        (None, ["--resume", ""], 2, "--resume is empty"),
        (None, ["--steps", "5"], 2, "steps is 5, but run has 8 already"),
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


def test_a_crop_that_the_recipe_could_not_have(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stride of this model does not divide the crop that its recipe begins with."""
    settings = (*SETTINGS, "crop=15", "architecture=Patchwise(stride=3,hidden=8)")
    said = call(capsys, "train", place / "images", "--out", tmp_path / "run", "--steps", "2", "--set", *settings)
    assert said.code == 0, said.err
    assert call(capsys, "train", "--resume", tmp_path / "run", "--steps", "3").code == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 3]


class Breaks(Watcher):
    """Ends a run in the middle."""

    def row(self, row: Row) -> None:
        if row["step"] == 4:
            raise InterruptedError


def test_random_numbers_go_on(tmp_path: Path) -> None:
    """Of a model that draws some, as one with dropout does."""
    config = resolve("photos", [*SETTINGS, "steps=6", "save_every=3", "log_every=1"])
    crops = RandomCrops([pixels(24, 32)], size=config.crop, batch=config.batch, seed=0)

    def train(name: str, *watchers: Watcher) -> torch.Tensor:
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = config.model.build(seed=0)
        model.encoder = torch.nn.Sequential(torch.nn.Dropout(0.5), model.encoder)
        fit(model, crops, 1.0, config, tmp_path / name, watchers=watchers)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    with pytest.raises(InterruptedError):
        train("twice", Breaks())
    assert torch.equal(train("twice"), train("once"))


def test_steps_that_the_scaler_skips(tmp_path: Path) -> None:
    """The loss is so large that the first steps overflow in float16; what they collected is no part of a later step."""
    config = resolve("photos", [*SETTINGS, "steps=9", "save_every=1", "log_every=1"])
    crops = RandomCrops([pixels(24, 32)], size=config.crop, batch=config.batch, seed=0)

    def train(name: str, *watchers: Watcher) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = config.model.build(seed=0)
        fit(model, crops, 1e-4, config, tmp_path / name, Hardware("cpu", "fp16"), watchers)
        return sha(tmp_path / name)

    with pytest.raises(InterruptedError):
        train("twice", Breaks())
    with safe_open(tmp_path / "twice" / "checkpoints" / "00000003.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["scaler"])["scale"] < 65536, "no step was skipped: this test shows nothing"
        assert int(file.get_tensor("model.quantizer.quantizer.steps")) < 3
    assert train("twice") == train("once")


# --- a full disk --------------------------------------------------------------------------------------------------


def at_most(size: str) -> str:
    """No file may become larger than that many bytes; writing more fails, as it does where a disk is full."""
    return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))"


def require_loadable(run: Path, step: int) -> None:
    """Nothing half written, and what was saved at that step, all of it numbers."""
    assert not [path for path in run.rglob("*") if "partial" in path.name or "tmp" in path.name]
    for path in (run / "checkpoints" / f"{step:08}.safetensors", run / "model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    VQVAE.from_pretrained(run)


@pytest.mark.parametrize(
    ("limit", "step", "last"),
    [
        ("8_000", 1, 0),  # for the first checkpoint
        ("8_000", 7, 4),  # for the second one
        ("os.path.getsize('run/metrics.jsonl') + 10", 10, 8),  # amid a row of metrics
        ("30_000", 1, 14),  # for the report
    ],
)
def test_no_room(place: Path, tmp_path: Path, limit: str, step: int, last: int) -> None:
    run, code = tmp_path / "run", at_step(step, at_most(limit))
    said = vqkit(tmp_path, "train", place / "images", "--out", "run", *TINY, code=code)
    assert said.code == 1 and said.err.count("\n") == 1
    assert said.err.startswith("vqkit: ") and "File too large" in said.err
    assert f"step {last} is saved" in said.err or not last
    assert said.err.endswith("go on with: vqkit train --resume run\n")
    if last:
        require_loadable(run, last)
    assert vqkit(tmp_path, "train", "--resume", "run").code == 0
    require_same(run, place)


def test_no_room_to_resume(place: Path, stopped: Path, tmp_path: Path) -> None:
    """For config.json there is, for the metrics, which are trimmed then, there is not."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    room = (run / "config.json").stat().st_size
    assert room < (run / "metrics.jsonl").stat().st_size
    said = vqkit(tmp_path, "train", "--resume", "run", code=f"import resource; {at_most(str(room))}")
    assert said.code == 1 and "File too large" in said.err
    require_loadable(run, 8)
    assert vqkit(tmp_path, "train", "--resume", "run").code == 0
    require_same(run, place)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk(place: Path, tmp_path: Path, disk: Path) -> None:
    run, fill = disk / "run", "os.system('dd if=/dev/zero of=disk/other bs=1k 2>/dev/null')"
    arguments = ("train", place / "images", "--out", run, *TINY)
    said = vqkit(tmp_path, *arguments, code=at_step(7, fill))
    for _ in range(2):
        assert said.code == 1 and said.err.count("\n") == 1 and "No space left on device" in said.err
        require_loadable(run, 4)
        assert [row["step"] for row in rows(run)][:3] == [3, 4, 6]
        said = vqkit(tmp_path, "train", "--resume", run)
    (disk / "other").unlink()
    assert vqkit(tmp_path, "train", "--resume", run).code == 0
    require_same(run, place)


# --- numbers that are none ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number(place: Path, stopped: Path, tmp_path: Path) -> None:
    """The first step learns 1e30, the second sees it; and the run goes on from the checkpoint before."""
    too_fast = ("learning_rate=1e30", "schedule=Constant()")
    said = vqkit(tmp_path, "train", place / "images", "--out", "fresh", *TINY, *too_fast)
    assert said.code == 1 and said.err.count("\n") == 1 and said.err.startswith("vqkit: step 2: ")
    assert not checkpoints(tmp_path / "fresh") and "learning_rate=2.5e+29" in said.err
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    said = vqkit(tmp_path, "train", "--resume", "run", "--set", *too_fast)
    assert said.code == 1 and said.err.count("\n") == 1 and said.err.startswith("vqkit: step 10: ")
    assert said.err.endswith("step 8 is saved; go on with: vqkit train --resume run --set learning_rate=2.5e+29\n")
    require_loadable(run, 8)
    lower = ("learning_rate=2e-3", "schedule=Cosine()")
    assert vqkit(tmp_path, "train", "--resume", "run", "--set", *lower).code == 0
    require_same(run, place)


def test_an_infinite_weight_is_not_saved(place: Path, tmp_path: Path) -> None:
    """Of a step whose loss was a number."""
    code = at_step(8, "self.param_groups[0]['params'][0].data[0].fill_(float('inf'))")
    said = vqkit(tmp_path, "train", place / "images", "--out", "run", *TINY, code=code)
    assert said.code == 1 and said.err.startswith("vqkit: step 8: encoder.") and "step 4 is saved" in said.err
    require_loadable(tmp_path / "run", 4)
    assert checkpoints(tmp_path / "run") == ["00000004.safetensors"]
    assert vqkit(tmp_path, "train", "--resume", "run").code == 0
    require_same(tmp_path / "run", place)


# --- two at once --------------------------------------------------------------------------------------------------

WAIT = "while not os.path.exists('go'): time.sleep(0.01)"


def test_a_directory_that_is_trained_in(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(tmp_path, "train", place / "images", "--out", run, *TINY, code=at_step(7, WAIT))
    first.wait_for(lambda: (run / "model.safetensors").exists())
    for arguments in ([place / "images", "--out", run, *TINY], ["--resume", run, "--set", "learning_rate=1"]):
        said = vqkit(tmp_path, "train", *arguments)
        assert said.code == 2 and said.err.count("\n") == 1 and said.err.startswith(f"vqkit: {run}")
    assert said.err == f"vqkit: {run}: another process is training there; wait for it, or choose another.\n"
    (tmp_path / "go").touch()
    assert first.wait().code == 0
    require_same(run, place)


def test_two_that_begin_at_once(place: Path, tmp_path: Path) -> None:
    both = [start(tmp_path, "train", place / "images", "--out", "run", *TINY) for _ in range(2)]
    won, lost = sorted((process.wait() for process in both), key=lambda said: said.code)
    assert (won.code, won.err, lost.code, lost.err.count("\n")) == (0, "", 2, 1)
    require_same(tmp_path / "run", place)


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


def require_interrupted(said: Said, run: str) -> list[str]:
    """The command that was named to go on with."""
    assert said.code == 130 and said.err.count("\n") == 1
    told, _, command = said.err.partition("; go on with: ")
    assert told == "vqkit: interrupted after step 5 of 14, which is saved"
    program, *arguments = shlex.split(command)
    assert (program, arguments) == ("vqkit", ["train", "--resume", run])
    return arguments


def require_same_but_for_the_interruption(run: Path, place: Path) -> None:
    """The row at the interruption begins a new mean, so the next one too is of fewer steps."""
    assert sha(run) == sha(place / "run")
    undisturbed = [row for row in rows(place / "run") if row["step"] != 6]
    assert [row for row in rows(run) if row["step"] not in (5, 6)] == undisturbed
    assert [row["step"] for row in rows(run)] == [3, 4, 5, 6, 8, 9, 12, 14]


def test_sigterm(place: Path, tmp_path: Path) -> None:
    """And what it says to go on with does, as a command of its own, whatever the directory is called."""
    code = at_step(5, "os.kill(os.getpid(), signal.SIGTERM)")
    said = vqkit(tmp_path, "train", place / "images", "--out", "my run", *TINY, code=code)
    arguments = require_interrupted(said, "my run")
    subprocess.run([sys.executable, "-m", "vqkit", *arguments], cwd=tmp_path, env=ENVIRONMENT, check=True)
    require_same_but_for_the_interruption(tmp_path / "my run", place)


def test_ctrl_c(place: Path, tmp_path: Path) -> None:
    """A terminal sends it to all processes of a command, those that load images too."""
    run, code = tmp_path / "run", at_step(5, WAIT)
    training = start(tmp_path, "train", place / "images", "--out", "run", *TINY, "--workers", 2, code=code)
    training.wait_for(lambda: (run / "model.safetensors").exists())
    os.killpg(training.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    require_interrupted(training.wait(), "run")
    assert vqkit(tmp_path, "train", "--resume", "run").code == 0
    require_same_but_for_the_interruption(run, place)
