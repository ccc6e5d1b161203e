"""What people get wrong: one line that says how to mend it, an exit code, and nothing overwritten or left behind."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vqkit.runs.use
from tests.command import TINY, Said, call, pixels, process, write_image, write_images
from vqkit.__main__ import main
from vqkit.models import VQVAE, ModelConfig
from vqkit.training import reconstruct

Capture = pytest.CaptureFixture[str]
FAILURE, USAGE = 1, 2


def expect(said: Said, code: int, *words: object) -> None:
    """One line on stderr, nothing that looks like a result on stdout."""
    assert said.code == code, said
    assert len(said.err.splitlines()) == 1 and said.err.startswith("vqkit: ") and "Traceback" not in said.err, said.err
    for word in words:
        assert str(word) in said.err, f"{word!r} is not in {said.err!r}"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def trained(tmp_path: Path, images: Path, capsys: Capture) -> Path:
    assert call(capsys, "train", images, "--out", tmp_path / "run", *TINY).code == 0
    return tmp_path / "run"


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["no/such/folder", "", "None"])
def test_no_such_path(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.chdir(tmp_path)
    expect(call(capsys, "train", data, *TINY), USAGE, repr(data), "no such file or folder")
    assert os.listdir(tmp_path) == []


def test_folder_without_images(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    expect(call(capsys, "train", tmp_path / "empty", "--out", tmp_path / "run", *TINY), FAILURE, "no image in it")
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    said = call(capsys, "train", tmp_path / "empty", "--out", tmp_path / "run", *TINY)
    expect(said, FAILURE, "no image in it", "notes.txt")
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_images_are_skipped_counted_and_named(tmp_path: Path, images: Path, capsys: Capture) -> None:
    (images / "notes.txt").write_text("no image")
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:100])
    (images / "wild [").mkdir()
    (images / "wild [" / "red].txt").write_text("[/red] is markup to some, and here a name")
    for command in (("train", images, "--out", tmp_path / "run", *TINY), ("eval", tmp_path / "run")):
        said = call(capsys, *command)
        assert said.code == 0 and ("3 RGB images" in said.out or command[0] == "eval")
        lines = said.err.splitlines()
        assert lines[0] == "vqkit: files left out: 3" and len(lines) == 4
        assert "notes.txt: not an image" in said.err and "cut.png: " in said.err and "[/red]" in said.err
    for i in range(9):
        (images / f"{i}.txt").write_text("no image")
    said = call(capsys, "eval", tmp_path / "run")
    assert len(said.err.splitlines()) == 7 and said.err.endswith("and 7 more\n")


def test_images_smaller_than_the_crop(tmp_path: Path, images: Path, capsys: Capture) -> None:
    write_image(images / "small.png", pixels(20, 11))
    said = call(capsys, "train", images, "--out", tmp_path / "run", *TINY)
    assert said.code == 0 and "1 smaller than 16 x 16 left out" in said.out
    assert said.err.startswith("vqkit: files left out: 1\n")
    assert "small.png: 11 x 20 pixels, smaller than the 16 x 16 crops" in said.err
    said = call(capsys, "train", images / "small.png", "--out", tmp_path / "none", *TINY)
    expect(said, FAILURE, "11 x 20", "--set crop=8")
    assert not (tmp_path / "none").exists()
    assert call(capsys, "train", images / "small.png", "--out", tmp_path / "none", *TINY, "crop=8").code == 0


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 20, 20), np.nan, np.float32), "finite"),
        (np.full((4, 20, 20), 9.0), "expected 0 to 1"),
        (np.zeros((4, 20, 20, 7), np.uint8), "shape (4, 20, 20, 7)"),
        (np.zeros(7, np.uint8), "shape (7,)"),
        (np.zeros((0, 20, 20), np.uint8), "empty"),
        (np.zeros((4, 20, 20), np.complex64), "complex64"),
        (np.full((4, 20, 20), "x"), "dtype <U1"),
    ],
)
def test_odd_arrays(tmp_path: Path, capsys: Capture, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "odd.npy", array)
    expect(call(capsys, "train", tmp_path / "odd.npy", "--out", tmp_path / "run", *TINY), FAILURE, "odd.npy", words)
    assert not (tmp_path / "run").exists()


class Trap:
    """Makes a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path, trained: Path, capsys: Capture) -> None:
    sprung = tmp_path / "sprung"
    array = np.array([Trap(sprung)], dtype=object)
    np.save(tmp_path / "objects.npy", array, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", images=array)
    for name in ("objects.npy", "objects.npz"):
        expect(call(capsys, "train", tmp_path / name, *TINY), FAILURE, name, "never unpickled")
    (trained / "model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    expect(call(capsys, "eval", trained), FAILURE, "model.safetensors", "damaged")
    assert not sprung.exists()
    np.load(tmp_path / "objects.npy", allow_pickle=True)
    assert sprung.exists(), "the trap does not work, so nothing was shown"


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "photo"], ["'photo'", "did you mean 'photos'?"]),
        (["--recipe", "zebra"], ["'zebra'", "photos, digits"]),
        (["--set", "codebok_size=9"], ["'codebok_size'", "'codebook_size'"]),
        (["--set", "learningrate=1"], ["'learning_rate'"]),
        (["--set", "channels=3"], ["no key 'channels'"]),
        (["--set", "steps"], ["key=value", "codebook_size"]),
        (["--set", "codebook_size=many"], ["codebook_size", "'many'", "whole number"]),
        (["--set", "codebook_size=0"], ["codebook_size is 0", "at least 1"]),
        (["--set", "dim=-1"], ["dim is -1"]),
        (["--set", "commitment=-1"], ["commitment is -1"]),
        (["--set", "commitment=nan"], ["commitment is nan"]),
        (["--set", "learning_rate=nan"], ["learning_rate is nan"]),
        (["--set", "learning_rate=0"], ["learning_rate is 0"]),
        (["--set", f"seed={2**63}"], ["seed is 9223372036854775808"]),
        (["--set", "crop=18"], ["crop is 18", "multiple of", "16"]),
        (["--set", "update=EMMA()"], ["EMMA", "EMA(), Gradient(), Frozen()"]),
        (["--set", "update=EMA(decay=2)"], ["decay is 2", "below 1"]),
        (["--set", "update=EMA(decay='x')"], ["decay must be a number"]),
        (["--set", "update=EMA(gamma=1)"], ["no field 'gamma'", "EMA(decay=...)"]),
        (["--set", "update=EMA(**{'decay': 1})"], ["EMA(decay=...)"]),
        (["--set", "update=KMeans()"], ["update", "EMA()"]),
        (["--set", "update=Frozen()"], ["Frozen()", "NoRevival()"]),
        (["--set", "start=KMeans(iterations=2.5)"], ["iterations must be a whole number"]),
        (["--set", "revival=Reseed(after=1e999)"], ["after must be a number"]),
        (["--set", "architecture=Convolutional(stride=3)"], ["stride is 3", "power of two"]),
        (["--steps", "0"], ["steps is 0", "at least 1"]),
        (["--steps", "-3"], ["steps is -3"]),
        (["--steps", "x"], ["steps is 'x'", "whole number"]),
        (["--steps", ""], ["steps is ''"]),
        (["--steps", "1.5"], ["steps is '1.5'"]),
        (["--device", "abacus"], ["device is 'abacus'", "here on cpu"]),
        (["--precision", "int8"], ["precision is 'int8'", "float32, bf16, fp16"]),
        (["--workers", "-1"], ["workers is '-1'", "0 or more"]),
        (["--workers", "many"], ["workers is 'many'"]),
        (["--set", "schedule=Linear()"], ["Linear", "Cosine(), Constant()"]),
        (["--set", "accumulate=3"], ["accumulate is 3", "batch of 16"]),
    ],
)
def test_settings(tmp_path: Path, images: Path, capsys: Capture, arguments: list[str], words: list[str]) -> None:
    expect(call(capsys, "train", images, "--out", tmp_path / "run", *arguments), USAGE, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "--stepz", "3"], "--steps"),
        (["trian"], "train, eval, reconstruct, report, explain, trace"),
        (["train", "one", "two"], "two"),
        (["eval"], "RUN"),
        (["reconstruct", "run", "image"], "--out"),
    ],
)
def test_unknown_and_missing_arguments(capsys: Capture, arguments: list[str], word: str) -> None:
    """The parser draws a box of a few lines."""
    said = call(capsys, *arguments)
    assert said.code == USAGE and word in said.err and said.out == "" and "--help" in said.err
    assert "Traceback" not in said.err and len(said.err.splitlines()) <= 12


def test_no_command(capsys: Capture) -> None:
    expect(call(capsys), USAGE, "train, eval, reconstruct, report, explain, trace, audit, convert or info", "--help")


def test_divergence(tmp_path: Path, images: Path, capsys: Capture) -> None:
    settings = ("learning_rate=1e30", "schedule=Constant()", "steps=30")
    said = call(capsys, "train", images, "--out", tmp_path / "run", *TINY, *settings)
    expect(said, FAILURE, "step ", "--set learning_rate=2.5e+29")


# --- where results go ---------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path, images: Path, trained: Path, capsys: Capture) -> None:
    before = snapshot(tmp_path)
    expect(call(capsys, "train", images, "--out", trained, *TINY), USAGE, trained, "nothing is overwritten")
    expect(call(capsys, "train", images, "--out", images / "a.png", *TINY), USAGE, "nothing is overwritten")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for out in (images / "a.png", tmp_path / "link.png"):
        said = call(capsys, "reconstruct", trained, images / "b.png", "-o", out)
        expect(said, USAGE, out, "not overwritten")
    assert snapshot(tmp_path) == before


def test_places_that_cannot_be_written(tmp_path: Path, images: Path, trained: Path, capsys: Capture) -> None:
    before = snapshot(tmp_path)
    expect(
        call(capsys, "reconstruct", trained, images / "a.png", "-o", "no/such/x.png"), USAGE, "no/such", "make it first"
    )
    expect(call(capsys, "reconstruct", trained, images / "a.png", "-o", tmp_path / "x.jpg"), USAGE, "x.jpg", ".png")
    expect(call(capsys, "train", images, "--out", images / "a.png" / "run", *TINY), USAGE, "a.png")
    expect(call(capsys, "train", images, "--out", "", *TINY), USAGE, "--out is empty")
    assert snapshot(tmp_path) == before


def test_a_read_only_directory(tmp_path: Path, images: Path, trained: Path, capsys: Capture) -> None:
    closed = tmp_path / "closed"
    if os.geteuid():
        closed.mkdir(mode=0o500)
    elif not (closed := Path("/sys")).is_dir():  # root may write anywhere but here
        pytest.skip("root may write anywhere: run the tests as somebody else")
    expect(call(capsys, "train", images, "--out", closed / "run", *TINY), FAILURE, closed / "run")
    expect(call(capsys, "reconstruct", trained, images / "a.png", "-o", closed / "x.png"), FAILURE, closed / "x.png")


def test_what_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, images: Path, trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(model: VQVAE, image: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        (tmp_path / "x.png").write_text("of another program")
        return reconstruct(model, image)

    monkeypatch.setattr(vqkit.runs.use, "reconstruct", slow)
    said = call(capsys, "reconstruct", trained, images / "a.png", "-o", tmp_path / "x.png")
    expect(said, USAGE, tmp_path / "x.png", "File exists")
    assert (tmp_path / "x.png").read_text() == "of another program"


# --- runs ---------------------------------------------------------------------------------------------------------


def test_what_is_no_run(tmp_path: Path, images: Path, capsys: Capture) -> None:
    for command in (["eval"], ["reconstruct", images / "a.png", "-o", tmp_path / "x.png"]):
        name, *rest = command
        expect(call(capsys, name, tmp_path / "nowhere", *rest), USAGE, "nowhere", "no directory")
        expect(call(capsys, name, images / "a.png", *rest), USAGE, "a.png", "no directory")
        expect(call(capsys, name, images, *rest), FAILURE, "no config.json")


def test_a_model_without_its_training(tmp_path: Path, images: Path, capsys: Capture) -> None:
    """As ``save_pretrained`` writes it, and the hub keeps it."""
    run = tmp_path / "model"
    ModelConfig(codebook_size=8).build(seed=0).save_pretrained(run)
    for command in (["eval", run], ["report", run]):
        expect(call(capsys, *command), FAILURE, run, "without its training", "DATA")
    expect(call(capsys, "train", "--resume", run), FAILURE, run, "config.json")


def test_two_runs_of_different_kinds(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    gray = tmp_path / "gray run"
    assert call(capsys, "train", write_images(tmp_path / "gray", channels=1), "--out", gray, *TINY).code == 0
    expect(call(capsys, "report", trained, gray), FAILURE, trained, gray, "of 3 channels", "of 1")


def test_a_metrics_file_that_was_altered(trained: Path, capsys: Capture) -> None:
    with (trained / "metrics.jsonl").open("ab") as file:
        file.write(b'5\n{"step": 9}\n{"step": 10, "loss\n\xff\xfe\n')
    assert call(capsys, "report", trained).code == 0


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_a_run_that_lacks_a_part(trained: Path, capsys: Capture, part: str) -> None:
    (trained / part).unlink()
    expect(call(capsys, "eval", trained), FAILURE, trained, f"no {part}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("\xff", "damaged"),
        ("{}", "'format'"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1}', "'model'"),
        ('{"format": 1, "model": []}', "config.json"),
        ('{"format": 1, "model": {"dimm": 4}}', "did you mean 'dim'"),
        ('{"format": 1, "model": {"dim": "4"}}', "config.json"),
        ('{"format": 1, "model": {"update": 4}}', "config.json"),
        ('{"format": 1, "model": {"update": "exec(1)"}}', "EMA()"),
        ('{"format": 1, "model": {"update": "\\u0000"}}', "config.json"),
    ],
)
def test_a_run_with_a_foreign_config(trained: Path, capsys: Capture, text: str, words: str) -> None:
    (trained / "config.json").write_bytes(text.encode("latin-1"))
    expect(call(capsys, "eval", trained), FAILURE, "config.json", words)


def test_a_run_with_other_weights(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    path = trained / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        expect(call(capsys, "eval", trained), FAILURE, path, "damaged")
    save_file({"another": torch.zeros(3)}, path)
    expect(call(capsys, "eval", trained), FAILURE, path, "does not fit")
    ModelConfig(codebook_size=8).build().save_pretrained(tmp_path / "other")
    save_file(load_file(tmp_path / "other" / "model.safetensors"), path)
    expect(call(capsys, "eval", trained), FAILURE, path, "does not fit", "size mismatch")


def test_data_of_a_run_that_is_gone(trained: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    images.rename(tmp_path / "moved")
    expect(call(capsys, "eval", trained), USAGE, images, "gone", "DATA")
    assert call(capsys, "eval", trained, tmp_path / "moved").code == 0


def test_data_that_does_not_suit_the_model(trained: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    gray = write_images(tmp_path / "gray", channels=1)
    expect(call(capsys, "eval", trained, gray), FAILURE, "1 channels", "colour")
    expect(call(capsys, "reconstruct", trained, images, "-o", tmp_path / "x.png"), FAILURE, "holds 3 images")
    assert not (tmp_path / "x.png").exists()


# --- debug and missing packages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--debug", "eval", "nowhere"], ["eval", "nowhere", "--debug"]])
def test_debug_lets_the_error_through(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vqkit", *arguments])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main()


WITHOUT = """
import sys
package = sys.argv.pop(1)
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from vqkit.__main__ import main
main()
"""


@pytest.mark.parametrize("package", ["tyro", "torch", "PIL", "skimage"])
def test_without_a_package_the_extra_is_named(tmp_path: Path, images: Path, package: str) -> None:
    said = process(package, "train", images, "--out", tmp_path / "run", *TINY, code=WITHOUT)
    expect(said, FAILURE, package, "pip install 'vqkit[train]'")
    assert not (tmp_path / "run").exists(), "found out too late"


def test_without_tensorboard_its_extra_is_named(tmp_path: Path, images: Path) -> None:
    arguments = ("train", images, "--out", tmp_path / "run", "--tensorboard", *TINY)
    expect(process("tensorboard", *arguments, code=WITHOUT), USAGE, "pip install 'vqkit[tensorboard]'")
    assert not (tmp_path / "run").exists(), "found out too late"
