"""A run of PyTorch in Keras and back: each framework in a process of its own, which meet in files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import vqkit
from tests.command import ENVIRONMENT, process
from vqkit.models import VQVAE, Convolutional, ModelConfig, Patchwise
from vqkit.models.storage import write_json

MARGIN = 1e-4  # of squared distances: a token nearer than this to a second code may get either
ARCHITECTURES = {
    "patchwise": Patchwise(stride=2, hidden=8, decoder_blocks=2),
    "convolutional": Convolutional(stride=4, hidden=8, residual=4),
}
KERAS = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}

pytestmark = pytest.mark.skipif(
    find_spec("keras") is None or find_spec("tensorflow") is None, reason="needs keras and tensorflow"
)

# Converts there and back, and says what the model in between makes of the same images and the same z.
SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from vqkit.keras.convert import convert
import keras

array = keras.ops.convert_to_numpy
for run in map(Path, sys.argv[1:]):
    file = convert(run, "keras", run.with_suffix(".keras"))
    convert(file, "torch", run.with_name(run.name + " again"))
    model = keras.saving.load_model(file)
    given = np.load(run / "given.npz")
    z, indices = model.encoder(given["x"]), model.encode(given["x"])
    np.savez(
        run / "keras.npz",
        z=array(z), indices=array(indices), x_hat=array(model(given["x"])),
        of_z=array(model.quantizer.encode(given["z"])), decoded=array(model.decode(given["indices"])),
    )
assert "torch" not in sys.modules
"""


def in_keras(script: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**ENVIRONMENT, **KERAS, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def digits() -> torch.Tensor:
    """Scikit-learn's, each pixel twice along each axis, in three channels that differ: (1797, 3, 16, 16) in [0, 1]."""
    small = torch.tensor(load_digits().images / 16, dtype=torch.float32)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return torch.stack([large, 1 - large, large**2], 1)


def train(architecture: Any, directory: Path) -> VQVAE:
    """Some steps, so that all of the state has moved; the last ones on one digit each, which leaves codes idle."""
    torch.manual_seed(0)
    config = ModelConfig(channels=3, architecture=architecture, dim=4, codebook_size=24, update=vqkit.EMA(0.9),
                         start=vqkit.KMeans(), revival=vqkit.Reseed(after=500.0))  # fmt: skip
    model = config.build(seed=2**61 + 1)
    with torch.no_grad():
        model.encoder.project.weight.mul_(4)  # codes then lie further apart than the margin
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    vqkit.attach(optimizer, model)
    for images in (*digits()[:832].split(32), *digits()[832:836].split(1)):
        x_hat, _, losses = model(images)
        ((x_hat - images).square().mean() + losses.total).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    entries = json.loads((directory / "config.json").read_text())
    write_json(
        directory / "config.json", {**entries, "data": "digits", "training": {"steps": 30, "schedule": "Cosine()"}}
    )
    return model.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, VQVAE]]:
    found = {}
    for name, architecture in ARCHITECTURES.items():
        directory = tmp_path_factory.mktemp("runs") / name
        model = train(architecture, directory)
        images = digits()[1000:1100]
        with torch.no_grad():
            z = model.encoder(images)
        np.savez(directory / "given.npz", x=images.movedim(1, -1), z=z.movedim(1, -1), indices=model.encode(images))
        found[name] = (directory, model)
    in_keras(SCRIPT, *(directory for directory, _ in found.values()))
    return found


@pytest.fixture(params=ARCHITECTURES)
def run(request: pytest.FixtureRequest, runs: dict[str, tuple[Path, VQVAE]]) -> tuple[Path, VQVAE]:
    return runs[request.param]


def test_there_and_back_every_bit_is_kept(run: tuple[Path, VQVAE]) -> None:
    directory, _ = run
    before = load_file(directory / "model.safetensors")
    after = load_file(directory.with_name(directory.name + " again") / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape, name
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
    state = {name.rpartition(".")[2]: tensor for name, tensor in before.items() if name.startswith("quantizer.")}
    for name in ("n", "usage", "idle"):
        assert len(state[name].unique()) > 2, f"{name} would not show an error"
    assert state["seed"] == 2**61 + 1 and state["steps"] == 30 and state["started"] == 1


def test_there_and_back_every_entry_is_kept(run: tuple[Path, VQVAE]) -> None:
    directory, model = run
    again = directory.with_name(directory.name + " again")
    before, after = (json.loads((of / "config.json").read_text()) for of in (directory, again))
    assert before == after and before["training"]["schedule"] == "Cosine()"
    assert sorted(path.name for path in again.iterdir()) == ["config.json", "model.safetensors"]
    assert VQVAE.from_pretrained(again).config == model.config


def test_equal_vectors_get_equal_codes(run: tuple[Path, VQVAE]) -> None:
    directory, _ = run
    given, keras = np.load(directory / "given.npz"), np.load(directory / "keras.npz")
    np.testing.assert_array_equal(keras["of_z"], given["indices"])
    assert len(np.unique(given["indices"])) > 6


def test_equal_images_get_equal_codes_and_reconstructions(
    run: tuple[Path, VQVAE], capsys: pytest.CaptureFixture[str]
) -> None:
    """Convolutions round differently, so a token that lies between two codes may get the other one: it is counted."""
    directory, model = run
    given, keras = np.load(directory / "given.npz"), np.load(directory / "keras.npz")
    np.testing.assert_allclose(keras["z"], given["z"], atol=1e-5)
    codes = model.quantizer.quantizer.codebook.double().numpy()
    distances = np.square(given["z"].astype(np.float64)[..., None, :] - codes).sum(-1)
    nearest = np.sort(distances, -1)
    close = nearest[..., 1] - nearest[..., 0] < MARGIN
    differ = keras["indices"] != given["indices"]
    with capsys.disabled():
        print(f"\n{directory.name}: {differ.sum()} of {differ.size} tokens differ, {close.sum()} within the margin")
    assert not (differ & ~close).any()
    assert close.mean() < 0.05
    with torch.no_grad():
        x_hat = model(torch.from_numpy(given["x"]).movedim(-1, 1)).x_hat.movedim(1, -1).numpy()
        decoded = model.decode(torch.from_numpy(given["indices"])).movedim(1, -1).numpy()
    np.testing.assert_allclose(keras["decoded"], decoded, atol=1e-5)
    same = ~differ.any((1, 2))
    assert same.sum() >= 15
    np.testing.assert_allclose(keras["x_hat"][same], x_hat[same], atol=1e-5)


# --- what cannot be converted ---------------------------------------------------------------------------------------

# A seed below zero, ages beyond 32 bits, and a directory that stands where an earlier version wrote first.
ODD = """
import sys
from pathlib import Path
from vqkit.keras.convert import convert

run = Path(sys.argv[1])
run.with_name("again.partial").mkdir()
run.with_name("again.partial").joinpath("mine").touch()
convert(convert(run, "keras", run.with_suffix(".keras")), "torch", run.with_name("again"))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_odd_states_come_back(backend: str, tmp_path: Path) -> None:
    """Where the backend counts in 32 bits, ages stop there and keep their order."""
    pytest.importorskip(backend)
    config = ModelConfig(channels=1, architecture=Patchwise(hidden=2), dim=2, codebook_size=3, start=vqkit.Uniform())
    model = config.build(seed=-3)
    model.quantizer.quantizer.idle[:] = torch.tensor([3_000_000_000, 0, 5])
    model.save_pretrained(tmp_path / "run")
    in_keras(ODD, tmp_path / "run", KERAS_BACKEND=backend)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    most = 2**63 - 1 if backend == "tensorflow" else 2**31 - 1
    assert after["quantizer.quantizer.idle"].tolist() == [min(3_000_000_000, most), 0, 5]
    assert before["quantizer.quantizer.seed"] == after["quantizer.quantizer.seed"] == -3
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "again.partial", "run", "run.keras"]


REFUSALS = """
import json, sys
import keras
from vqkit.cli import run
from pathlib import Path

place = Path(sys.argv[1])
keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(place / "dense.keras")


@keras.saving.register_keras_serializable("mine")
class Mine(keras.layers.Layer):
    pass


keras.Sequential([keras.Input((3,)), Mine()]).save(place / "mine.keras")
keras.saving.get_custom_objects().pop("mine>Mine")
whole = (place / "whole.keras").read_bytes()
(place / "half.keras").write_bytes(whole[: len(whole) // 2])
for arguments in json.loads(sys.argv[2]):
    print("code", run(["convert", *arguments]), file=sys.stderr)
"""
NEW = "{0}/new.keras"
# what is typed after "convert", in a directory {0}; what is said, in one line; the exit code
REFUSED = {
    "no such run": (["{0}/none", "--to", "keras", NEW], "{0}/none is no directory: name a run", 2),
    "a run without a model": (["{0}/empty", "--to", "keras", NEW], "{0}/empty has no config.json: it is no run", 1),
    "damaged weights": (["{0}/damaged", "--to", "keras", NEW], "model.safetensors is damaged or no safetensors", 1),
    "other weights": (
        ["{0}/other", "--to", "keras", NEW],
        "does not fit the model in config.json (encoder.embed.bias",
        1,
    ),
    "more weights": (
        ["{0}/more", "--to", "keras", NEW],
        "does not fit the model in config.json (it also holds more)",
        1,
    ),
    "not started": (["{0}/unstarted", "--to", "keras", NEW], "holds a codebook that has not started", 1),
    "no weights": (["{0}/weightless", "--to", "keras", NEW], "{0}/weightless has no model.safetensors", 1),
    "no model": (["{0}/foreign", "--to", "keras", NEW], "config.json does not describe a model (", 1),
    "another framework": (["{0}/run", "--to", "onnx", NEW], "--to onnx: write keras, for a .keras file, or torch", 2),
    "another ending": (["{0}/run", "--to", "keras", "{0}/new.h5"], "new.h5: a Keras model is written, so the name", 2),
    "it exists": (["{0}/run", "--to", "keras", "{0}/whole.keras"], "whole.keras exists already and is not overwri", 2),
    "it exists as a run": (
        ["{0}/whole.keras", "--to", "torch", "{0}/run"],
        "{0}/run exists already and is not over",
        2,
    ),
    "no place": (["{0}/run", "--to", "keras", "{0}/none/new.keras"], "{0}/none is no directory to write into", 2),
    "no such file": (["{0}/none.keras", "--to", "torch", "{0}/new"], "{0}/none.keras is no file: name a .keras", 2),
    "half a file": (["{0}/half.keras", "--to", "torch", "{0}/new"], "{0}/half.keras cannot be loaded (", 1),
    "no autoencoder": (
        ["{0}/dense.keras", "--to", "torch", "{0}/new"],
        "dense.keras holds a Sequential that PyTorch",
        1,
    ),
    "an unknown class": (["{0}/mine.keras", "--to", "torch", "{0}/new"], "Could not locate class 'Mine'", 1),
}


def test_what_cannot_be_converted(runs: dict[str, tuple[Path, VQVAE]], tmp_path: Path) -> None:
    """One line each, an exit code as of other commands, and nothing written."""
    source, _ = runs["patchwise"]
    (tmp_path / "whole.keras").write_bytes(source.with_suffix(".keras").read_bytes())
    right, config = load_file(source / "model.safetensors"), (source / "config.json").read_text()
    started, bias = "quantizer.quantizer.started", "encoder.embed.bias"
    for name, weights in {
        "run": right,
        "other": {**right, bias: right[bias][:3].clone()},
        "more": {**right, "more": torch.zeros(1)},
        "unstarted": {**right, started: torch.zeros((), dtype=torch.int64)},
        "foreign": right,
    }.items():
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "foreign" / "config.json").write_text(config.replace("Patchwise(", "Resnet("))
    for name in ("empty", "damaged", "weightless"):
        (tmp_path / name).mkdir()
    for name in ("damaged", "weightless"):
        (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"none")
    made = ("dense.keras", "half.keras", "mine.keras")
    before = sorted([*(path.name for path in tmp_path.iterdir()), *made])
    arguments = [[word.format(tmp_path) for word in words] for words, _, _ in REFUSED.values()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFUSALS, str(tmp_path), json.dumps(arguments)],
        capture_output=True, text=True, timeout=300, env={**ENVIRONMENT, **KERAS},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith(("vqkit: ", "code "))]
    assert len(lines) == 2 * len(REFUSED), done.stderr
    for (name, (_, said, code)), line, exit in zip(REFUSED.items(), lines[::2], lines[1::2], strict=True):
        assert said.format(tmp_path) in line, (name, line)
        assert exit == f"code {code}", (name, line)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_command_says_what_it_wrote(runs: dict[str, tuple[Path, VQVAE]], tmp_path: Path) -> None:
    """And the run that comes of a .keras file is one for the other commands: here the one that measures."""
    source, _ = runs["patchwise"]
    np.save(tmp_path / "digits.npy", (digits()[:4].movedim(1, -1).numpy() * 255).astype(np.uint8))
    file, out = source.with_suffix(".keras"), tmp_path / "run"
    said = process("convert", file, "--to", "torch", out, **KERAS)
    assert (said.code, said.out) == (0, f"the model is {out}\n"), said.err
    first, second = (process("eval", run, tmp_path / "digits.npy") for run in (source, out))
    assert second == first and second.code == 0
