"""What does not fit is refused by the Keras layer, and by files of its codebook, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import vqkit
import vqkit.keras

SIZES = "it must be an integer of at least 1, for example 64."
START = "it must be an object such as Uniform(), or Given(array) for codes of your own."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook_size": 8.0}, f"codebook_size is 8.0; {SIZES}"),
        ({"codebook_size": "8"}, f"codebook_size is '8'; {SIZES}"),
        ({"dim": 4.0}, f"dim is 4.0; {SIZES}"),
        ({"dim": -1}, f"dim is -1; {SIZES}"),
        ({"start": np.zeros((8, 4))}, f"start is ndarray; {START}"),
        ({"start": [[0.0] * 4] * 8}, f"start is list; {START}"),
        ({"start": "uniform"}, f"start is 'uniform'; {START}"),
    ],
)
def test_arguments_that_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vqkit.keras.VectorQuantizer(**{"codebook_size": 8, "dim": 4, **arguments})


def test_sizes_of_numpy_are_integers() -> None:
    layer = vqkit.keras.VectorQuantizer(np.int64(8), np.int32(4))
    layer.build((None, 4))
    assert layer.codebook.shape == (8, 4)


def test_a_model_whose_quantizer_is_a_layer_among_others(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), vqkit.keras.VectorQuantizer(8), keras.layers.Dense(2)])
    with pytest.raises(
        ValueError, match=r"^codebook \(Sequential\) .*pass the quantizer itself, such as model\.layers\["
    ):
        vqkit.save_codebook(tmp_path / "codes", model)
    with pytest.raises(
        ValueError, match=r"^codebook \(VectorQuantizer\) .* has its codes once built: call it, or give"
    ):
        vqkit.save_codebook(tmp_path / "codes", vqkit.keras.VectorQuantizer(8))
    vqkit.save_codebook(tmp_path / "codes", model.layers[0])
    assert vqkit.load_codebook(tmp_path / "codes").array.shape == (8, 4)


def test_codes_of_another_shape(tmp_path: Path) -> None:
    vqkit.save_codebook(tmp_path / "codes", np.eye(8, 5))
    layer = vqkit.keras.VectorQuantizer(16, start=vqkit.load_codebook(tmp_path / "codes"))
    with pytest.raises(ValueError, match=r"it must be \(16, 4\): set codebook_size=8 and dim=5, or pass codes of that"):
        layer.build((None, 4))
