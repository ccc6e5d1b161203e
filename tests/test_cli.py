"""The commands: what they leave, print and accept."""

from __future__ import annotations

import gzip
import json
import os
import struct
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqkit
from tests.command import SETTINGS, TINY, call, pixels, write_image, write_images
from vqkit.functional import native
from vqkit.models import VQVAE
from vqkit.training import RECIPES, resolve

Capture = pytest.CaptureFixture[str]
LEFT = [".lock", "checkpoints", "config.json", "metrics.jsonl", "model.safetensors", "report.html"]
ROW = {
    "step",
    "loss",
    "reconstruction",
    "codebook",
    "commitment",
    "perplexity",
    "batch_perplexity",
    "images_per_second",
    "learning_rate",
}
FIGURES = {"images", "mse", "nmse", "psnr", "ssim", "usage", "perplexity", "bits_per_pixel"}


@pytest.fixture
def trained(tmp_path: Path, capsys: Capture) -> Path:
    assert call(capsys, "train", write_images(tmp_path / "images"), "--out", tmp_path / "run", *TINY).code == 0
    return tmp_path / "run"


def test_train_leaves_its_files_and_says_where(tmp_path: Path, capsys: Capture) -> None:
    folder = write_images(tmp_path / "images", ["a.png", "deep/er/b.png", "deep/c.jpg"])
    out = tmp_path / "new" / "run"
    said = call(capsys, "train", folder, "--out", out, *TINY, "log_every=2")
    assert said.code == 0 and said.err == ""
    assert sorted(os.listdir(out)) == LEFT
    assert "3 RGB images" in said.out and str(out / "report.html") in said.out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [2, 3] and all(set(row) == ROW for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["commitment"])  # under EMA
    modes = {(out / name).stat().st_mode & 0o777 for name in LEFT if (out / name).is_file() and name != ".lock"}
    assert len(modes) == 1, "one of them is for other eyes than the rest"


def test_without_out_runs_are_numbered(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "1").mkdir(parents=True)  # of somebody who begins at this moment
    for number in (2, 3):
        assert str(Path("runs", str(number), "report.html")) in call(capsys, "train", folder, *TINY).out
    assert os.listdir(tmp_path / "runs" / "1") == []


def test_the_bundled_photos(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    said = call(capsys, "train", "--out", run, *TINY, "architecture=Patchwise(hidden=8,stride=8)")
    assert said.code == 0, said.err
    assert "astronaut" in said.out and "held out: PSNR" in said.out and "training: PSNR" in said.out
    assert "0.0625 bits per pixel" in said.out  # 4 bits for each 8x8 block
    assert "chelsea" in (run / "report.html").read_text(encoding="utf-8")
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["data"] is None


@pytest.mark.parametrize(
    ("name", "channels"),
    [("one.png", 3), ("gray.png", 1), ("array.npy", 1), ("several.npz", 3), ("some-idx3-ubyte.gz", 1)],
)
def test_other_data(tmp_path: Path, capsys: Capture, name: str, channels: int) -> None:
    path, images = tmp_path / name, np.stack([pixels(20, 24, channels, seed) for seed in range(12)])
    if name.endswith(".png"):
        write_image(path, images[0])
    elif name.endswith(".npy"):
        np.save(path, images[..., 0])
    elif name.endswith(".npz"):
        np.savez(path, labels=np.arange(12), images=images)
    else:
        path.write_bytes(gzip.compress(struct.pack(">2x2B3I", 8, 3, *images.shape[:3]) + images.tobytes()))
    said = call(capsys, "train", path, "--out", tmp_path / "run", *TINY)
    assert said.code == 0, said.err
    model = VQVAE.from_pretrained(tmp_path / "run")
    assert model.config is not None and model.config.channels == channels
    assert ("held out: PSNR" in said.out) is not name.endswith(".png")


def test_digits_of_scikit_learn(tmp_path: Path, capsys: Capture) -> None:
    from sklearn.datasets import load_digits

    np.save(tmp_path / "digits.npy", (load_digits().images[:100] * 15.9375).round().astype(np.uint8))
    said = call(
        capsys, "train", tmp_path / "digits.npy", "--recipe", "digits", "--out", tmp_path / "run", "--steps", "2"
    )
    assert said.code == 1 and "8 x 8" in said.err and "--set crop=8" in said.err  # and that is what helps:
    arguments = ("--recipe", "digits", "--out", tmp_path / "run", "--steps", "2", "--set", "crop=8", "dim=4")
    said = call(capsys, "train", tmp_path / "digits.npy", *arguments)
    assert said.code == 0 and "90 gray images, 10 more held out" in said.out, said.err


def test_mnist(tmp_path: Path, capsys: Capture) -> None:
    data = Path(os.environ.get("VQKIT_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = data / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not path.exists():
        pytest.skip(f"no MNIST at {path}; set VQKIT_DATA to a folder that holds mnist/t10k-images-idx3-ubyte.gz")
    said = call(
        capsys, "train", path, "--recipe", "digits", "--out", tmp_path / "run", "--steps", "2", "--set", "batch=8"
    )
    assert said.code == 0 and "9900 gray images, 100 more held out" in said.out, said.err


def test_config_is_resolved_and_written_back_gives_the_same(tmp_path: Path, capsys: Capture) -> None:
    settings = ["update=Gradient()", "revival=NoRevival()", "estimator=RotationTrick(max_gain=3.0)", "start=Normal()"]
    arguments = ("--recipe", "digits", "--out", tmp_path / "run", *TINY, *settings, "weight_decay=0.01")
    assert call(capsys, "train", write_images(tmp_path / "images", channels=1), *arguments).code == 0
    entries = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    pairs = {**entries["training"], **entries["model"]}
    assert pairs.pop("channels") == 1
    written_back = [f"{key}={value}" for key, value in pairs.items()]
    wanted = resolve("digits", [*SETTINGS, "steps=3", *settings, "weight_decay=0.01"])
    for recipe in RECIPES:  # nothing is left to the recipe
        config = resolve(recipe, written_back)
        assert config.to_json() == wanted.to_json() and config.model.to_json()["update"] == "Gradient()"
    assert resolve("digits", written_back) == wanted
    assert entries["vqkit"] == vqkit.__version__ and entries["data"] == str(tmp_path / "images")


def test_set_may_be_given_once_or_often(tmp_path: Path, capsys: Capture) -> None:
    folder = write_images(tmp_path / "images")
    often = [part for setting in SETTINGS for part in ("--set", setting)]
    assert call(capsys, "train", folder, *often, "--set=steps=7", "--steps", "2", "--out", tmp_path / "run").code == 0
    training = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["training"]
    assert training["steps"] == 2 and training["crop"] == 16  # --steps has the last word


def test_eval(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    said = call(capsys, "eval", trained, "--json")
    (split, row), *others = json.loads(said.out).items()
    assert said.code == 0 and split == "training" and not others and set(row) == FIGURES and row["images"] == 3
    table = call(capsys, "eval", trained).out
    assert f"{row['psnr']:.5g}" in table and all(name in table for name in FIGURES)
    many = write_images(tmp_path / "many", [f"{i:02}.png" for i in range(20)])
    row = json.loads(call(capsys, "eval", trained, many, "--json").out)["data"]
    assert row["images"] == 20  # all of what was named, none of it held out
    run = tmp_path / "of many"
    call(capsys, "train", many, "--out", run, *TINY)
    rows = json.loads(call(capsys, "eval", run, "--json").out)
    assert list(rows) == ["held_out", "training"] and (rows["held_out"]["images"], rows["training"]["images"]) == (
        2,
        18,
    )


def test_eval_of_a_constant_image_is_valid_json(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_image(tmp_path / "flat.png", np.full((8, 9, 3), 77, np.uint8))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(call(capsys, "eval", trained, path, "--json").out, parse_constant=refuse)["data"]
    assert row["nmse"] is None and row["ssim"] is None and row["mse"] > 0
    assert "nmse                       -" in call(capsys, "eval", trained, path).out


@pytest.mark.parametrize("height, width", [(37, 53), (1, 1), (16, 4), (3, 80)])
@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruct_keeps_the_size(
    trained: Path, tmp_path: Path, capsys: Capture, height: int, width: int, channels: int
):
    image, out = write_image(tmp_path / "in.png", pixels(height, width, channels)), tmp_path / "out.png"
    said = call(capsys, "reconstruct", trained, image, "-o", out)
    assert said.code == 0, said.err
    with Image.open(out) as restored:
        assert restored.size == (width, height) and restored.mode == "RGB"
        error = np.mean((np.asarray(restored, np.float64) - pixels(height, width, channels)) ** 2) / 255**2
    assert f"PSNR {-10 * np.log10(error):.2f} dB" in said.out
    assert sorted(os.listdir(tmp_path)) == ["images", "in.png", "out.png", "run"]


def test_a_gray_model_takes_colour(tmp_path: Path, capsys: Capture) -> None:
    call(capsys, "train", write_images(tmp_path / "gray", channels=1), "--out", tmp_path / "run", *TINY)
    image = write_image(tmp_path / "in.png", pixels(37, 53, 3))
    assert call(capsys, "reconstruct", tmp_path / "run", image, "--out", tmp_path / "out.PNG").code == 0
    with Image.open(tmp_path / "out.PNG") as restored:
        assert restored.size == (53, 37) and restored.mode == "L"


def test_what_was_trained_is_what_is_used(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    """The file and three lines of Python give the same pixels."""
    image = pixels(16, 24)
    call(capsys, "reconstruct", trained, write_image(tmp_path / "in.png", image), "-o", tmp_path / "out.png")
    model = vqkit.VQVAE.from_pretrained(trained)
    indices = model.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert indices.shape == (1, 4, 6) and indices.dtype == torch.int64
    restored = (model.decode(indices)[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    with Image.open(tmp_path / "out.png") as written:
        np.testing.assert_array_equal(np.asarray(written), restored)


def test_info(capsys: Capture) -> None:
    said = call(capsys, "info")
    rows = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert said.code == 0 and rows["vqkit"] == vqkit.__version__ and rows["torch"] == torch.__version__
    assert rows["numpy"] == np.__version__ and "cpu" in rows["devices"]
    assert rows["search"].startswith("C++, for" if native.instructions() else "PyTorch, in chunks")
    assert all(f"{name} {version(name)}" in rows["beside"] for name in ("keras", "jax"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["{train,eval,reconstruct,report,explain,trace,audit,convert,info}", "--debug"]),
        (
            ("train",),
            ["[DATA]", "--recipe NAME", "--out DIR", "--steps N", "--set KEY=VALUE ...", "--resume DIR", "cifar10"],
        ),
        (("eval",), ["RUN [DATA] [--json]"]),
        (("reconstruct",), ["RUN IMAGE -o OUT.png"]),
        (("report",), ["RUN [RUN2]", "side by side"]),
        (("explain",), ["-o PAGE.html", "--open", "--text", "--json", "vqkit-explain.html"]),
        (("trace",), ["RUN [DATA] [--json]"]),
        (("audit",), ["PACKAGE.MODULE:CLASS", "--arg NAME=VALUE ...", "--tell NAME=VALUE ...", "--dim N"]),
        (("convert",), ["RUN OUT --to keras|torch", ".keras file"]),
        (("info",), ["search"]),
    ],
)
def test_help(capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = call(capsys, *command, "--help")
    assert said.code == 0 and said.err == ""
    for word in (*words, "usage: vqkit"):
        assert word in said.out
    assert "None" not in said.out and said.out.count("{") == (command == ())
