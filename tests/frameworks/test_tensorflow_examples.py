"""The TensorFlow examples are run as a reader runs them, in fewer steps, and held to what they promise."""

from __future__ import annotations

import gzip
import re
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_examples import code_lines

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example with arguments, and gives what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MPLBACKEND", "Agg")
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def write_idx(path: Path) -> None:
    """400 images of 28x28 as MNIST's file has them: blobs, here and there."""
    rng, grid = np.random.default_rng(0), np.arange(28)
    places = rng.uniform(6, 22, (400, 2, 1))
    blobs = [np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 20) for y, x in places]
    pixels = (255 * np.array(blobs)).astype(np.uint8)
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes())


@pytest.mark.parametrize("source", ["scikit-learn", "idx"])
def test_side_by_side_is_better_with_the_estimator(run, tmp_path: Path, source: str) -> None:
    write_idx(tmp_path / "digits.gz")
    arguments = ["digits.gz", "--steps", "60"] if source == "idx" else ["--steps", "120"]
    printed = run("tensorflow_side_by_side.py", *arguments)
    matched = re.fullmatch(r"with the estimator +held-out error (\S+)\nwithout +held-out error (\S+)\n", printed)
    assert matched, printed
    assert float(matched[1]) < float(matched[2]) / 2
    assert (tmp_path / "side_by_side.png").read_bytes().startswith(b"\x89PNG")


def test_side_by_side_is_short_and_plain() -> None:
    source = (EXAMPLES / "tensorflow_side_by_side.py").read_text(encoding="utf-8")
    assert len(code_lines(source)) < 80
    assert "vqkit" not in source


def test_by_hand_is_what_the_optimizers_do(run) -> None:
    """To rounding: 40 look-ups a step sum to 100 and more, of which float32 keeps 1e-5; steps are 0.01."""
    rows = [line.rsplit(maxsplit=3) for line in run("tensorflow_by_hand.py", "--steps", "20").splitlines()[1:-1]]
    found = {name: [float(x) for x in numbers] for name, *numbers in rows}
    different = found.pop("Adam, squared after adding up")
    assert len(found) == 5
    assert max(difference for difference, _, _ in found.values()) < 2e-5
    assert different[0] > 0.05  # Keras's Adam, given slices, is not the published one
    never, once = ({name: numbers[place] > 0 for name, numbers in found.items()} for place in (1, 2))
    assert [name for name in found if never[name]] == ["AdamW, IndexedSlices"]
    assert [name for name in found if not once[name]] == ["SGD"]


def test_a_scatter_update_is_the_layers_ema(run) -> None:
    last = run("tensorflow_by_hand.py", "--steps", "5").splitlines()[-1]
    assert last.startswith("EMA, against vqkit.keras")
    assert float(last.split()[-1]) < 1e-6


def test_the_keras_example_reconstructs_digits(run, tmp_path: Path) -> None:
    write_idx(tmp_path / "digits.gz")
    printed = run("keras_mnist.py", "digits.gz", "--steps", "40", "--out", "blobs")
    matched = re.search(r"held-out digits: (\S+)\nof the mean image: (\S+); perplexity: (\S+) of 128", printed)
    assert matched, printed
    assert float(matched[1]) < float(matched[2]) / 2 and 1 < float(matched[3]) <= 128
    assert (tmp_path / "blobs.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "blobs.keras").stat().st_size > 10_000


def test_the_keras_example_says_what_a_foreign_file_is(run, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(struct.pack(">II", 0x801, 3) + b"\1\2\3")
    with pytest.raises(SystemExit, match="labels holds no images in the idx format"):
        run("keras_mnist.py", "labels")
