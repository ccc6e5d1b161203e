"""One codebook in a file: its bits come back, and what is no codebook of this package is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import vqkit
from vqkit.models import ModelConfig, Patchwise
from vqkit.models.codebook_file import load_codebook, save_codebook

CODES = np.random.default_rng(0).normal(size=(6, 3))
RIGHT = {"format": "vqkit codebook 1", "metric": "euclidean", "codebook_size": "6", "dim": "3", "vqkit": "0.1.0"}
UNSTARTED = "codebook holds zeros alone: it has not started; train it first, or call vqkit.start."
TENSORS = {"codebook": CODES.astype(np.float32), "n": np.arange(6, dtype=np.float32)}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_comes_back_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    codes, n = CODES.astype(dtype), np.linspace(0, 1, 6).astype(dtype)
    save_codebook(tmp_path / "a", codes, n)
    given = load_codebook(tmp_path / "a")
    assert same_bits(given.array, codes) and same_bits(given.n, n)


def test_a_layer_goes_on_where_it_was(tmp_path: Path) -> None:
    """Codes and n after some steps of EMA; the next step of the new layer is the next step of the old one."""
    torch.manual_seed(0)
    old = vqkit.VectorQuantizer(dim=3, codebook_size=6, update=vqkit.EMA(decay=0.9), seed=0)
    batches = torch.randn(4, 50, 3)
    for batch in batches[:3]:
        old.observe(batch)
        vqkit.step(old)
    save_codebook(tmp_path / "a", old)
    new = vqkit.VectorQuantizer(
        dim=3, codebook_size=6, update=vqkit.EMA(decay=0.9), start=load_codebook(tmp_path / "a"), seed=1
    )
    assert torch.equal(new.codebook, old.codebook) and torch.equal(new.n, old.n)
    assert len(set(new.n.tolist())) > 3
    for layer in (old, new):
        layer.observe(batches[3])
        vqkit.step(layer)
    assert torch.equal(new.codebook, old.codebook) and torch.equal(new.n, old.n)


@pytest.mark.parametrize("update", [vqkit.Gradient(), vqkit.EMA(), vqkit.Frozen()], ids=repr)
def test_whatever_holds_a_quantizer_will_do(tmp_path: Path, update: object) -> None:
    config = ModelConfig(architecture=Patchwise(hidden=4), dim=3, codebook_size=6, start=vqkit.Normal(), update=update,
                         revival=vqkit.NoRevival())  # fmt: skip
    model = config.build(seed=0)
    for holder in (model, model.quantizer, model.quantizer.quantizer):
        save_codebook(tmp_path / "a", holder)
        assert same_bits(load_codebook(tmp_path / "a").array, model.quantizer.quantizer.codebook.detach().numpy())


def test_a_tensor_and_a_list(tmp_path: Path) -> None:
    """A tensor that requires grad; one of a precision that NumPy lacks, whose values fit into float32; numbers."""
    low = torch.tensor(CODES).bfloat16()
    for codes, wanted in (
        (torch.tensor(CODES, requires_grad=True), CODES),
        (low, low.float().numpy()),
        (CODES.tolist(), CODES),
    ):
        save_codebook(tmp_path / "a", codes)
        given = load_codebook(tmp_path / "a")
        assert same_bits(given.array, wanted)
        np.testing.assert_array_equal(given.n, np.ones(6))


def test_no_framework_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, vqkit; from vqkit.models.codebook_file import save_codebook, load_codebook\n"
        "save_codebook(sys.argv[1], numpy.eye(3)); load_codebook(sys.argv[1])\n"
        "print({'torch', 'jax', 'tensorflow', 'keras'} & set(sys.modules))"
    )
    source = str(Path(vqkit.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": source},
    )  # fmt: skip
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("codebook", "n", "said"),
    [
        (
            torch.nn.Flatten(),
            None,
            "codebook (Flatten) has shape (); it must be (K, D), each row a code. Of a model pass the quantizer "
            "itself, such as model.layers[1]; a Keras layer has its codes once built: call it, or give it dim=",
        ),
        (CODES[0], None, "codebook (ndarray) has shape (3,); it must be (K, D), each row a code."),
        (np.zeros((6, 3)), None, UNSTARTED),
        (np.where(np.eye(6, 3) > 0, np.nan, CODES), None, "array holds NaN or infinity; every code must be finite."),
        (CODES, [1.0, 2.0], "n has shape (2,); it must be a number or 6 of them, finite and not negative."),
        (
            vqkit.VectorQuantizer(dim=3, codebook_size=6, start=vqkit.KMeans()),
            None,
            UNSTARTED,
        ),
    ],
)  # fmt: skip
def test_what_is_no_codebook_is_not_saved(tmp_path: Path, codebook: object, n: object, said: str) -> None:
    with pytest.raises(ValueError) as error:
        save_codebook(tmp_path / "a", codebook, n)
    assert str(error.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def foreign(**metadata: str) -> Callable[[Path], None]:
    return lambda path: save_file(TENSORS, path, {**RIGHT, **metadata} if metadata else None)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: path.write_bytes(b"no safetensors"), " is damaged or no safetensors file ("),
        (foreign(), " is no codebook file: write one with vqkit.save_codebook(path, quantizer)."),
        (foreign(format="pt"), " is no codebook file: write one with vqkit.save_codebook(path, quantizer)."),
        (
            foreign(format="vqkit codebook 2"),
            " is of format 2; this vqkit reads format 1: install a newer one.",
        ),
        (
            foreign(metric="cosine"),
            " is for the metric 'cosine'; vqkit's quantizers take 'euclidean' codes alone: for cosine codes "
            "normalize the codes and z yourself, and save the codes anew with vqkit.save_codebook.",
        ),
        (foreign(dim="4"), " does not hold the codebook and the n that it says: save the codebook again."),
        (
            lambda path: save_file({"codebook": TENSORS["codebook"]}, path, RIGHT),
            " does not hold the codebook and the n that it says: save the codebook again.",
        ),
        (
            lambda path: save_file({**TENSORS, "codebook": TENSORS["codebook"] * np.nan}, path, RIGHT),
            " cannot be used: array holds NaN or infinity; every code must be finite.",
        ),
    ],
)
def test_what_is_no_codebook_is_not_loaded(tmp_path: Path, write: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(ValueError) as error:
        load_codebook(path)
    assert str(error.value).startswith(f"{path}{said}")
    assert "\n" not in str(error.value)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save_codebook(path, CODES)
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged or no safetensors file"):
            load_codebook(path)


def test_a_missing_file_and_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no file: name one that vqkit\.save_codebook wrote"):
        load_codebook(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none is no directory to write into: make it first"):
        save_codebook(tmp_path / "none" / "a", CODES)


def test_another_shape_is_said_by_the_layer(tmp_path: Path) -> None:
    save_codebook(tmp_path / "a", CODES)
    with pytest.raises(ValueError) as error:
        vqkit.VectorQuantizer(dim=3, codebook_size=8, start=load_codebook(tmp_path / "a"))
    assert str(error.value) == (
        "array has shape (6, 3); with codebook_size=8 and dim=3 it must be (8, 3): set codebook_size=6 and dim=3, or "
        "pass codes of that shape."
    )
    with pytest.raises(ValueError, match=r"array has shape \(3,\); .* it must be \(1, 3\): pass codes of that shape"):
        vqkit.VectorQuantizer(dim=3, codebook_size=1, start=vqkit.Given(CODES[0]))
