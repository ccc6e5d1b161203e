"""The autoencoder in Keras: it learns from images alone, comes back from its file as it was, and says what is amiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import vqkit
from vqkit.keras.layer import VectorQuantizer
from vqkit.keras.vqvae import VQVAE
from vqkit.models import Convolutional, Patchwise

IMAGES = np.random.default_rng(0).random((24, 8, 8, 1), np.float32) ** 3
ARCHITECTURES = [Patchwise(stride=2, hidden=6, decoder_blocks=1), Convolutional(hidden=6, residual=4, blocks=1)]
# Keras's own, where NumPy is newer than it.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


BACKEND = keras.backend.backend()


def model_of(architecture: Any = ARCHITECTURES[0], update: Any = vqkit.EMA(0.9), compiled: bool = False) -> VQVAE:
    """Compiled where it is asked for, and on JAX; elsewhere a compiler takes longer than all steps here."""
    compiled |= BACKEND == "jax"
    keras.utils.set_random_seed(1)
    model = VQVAE.of(
        channels=1, architecture=architecture, dim=4, codebook_size=8, update=update, start=vqkit.Normal(0.1), seed=2,
        revival=vqkit.NoRevival(),
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=not compiled, jit_compile=compiled)
    return model


def array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))


@pytest.mark.parametrize("update", [vqkit.EMA(0.9), vqkit.Gradient()], ids=repr)
def test_it_learns_from_images_alone(update: Any) -> None:
    """The figures of ``evaluate`` are those of all images at once, though 24 make batches of 16 and of 8."""
    model = model_of(update=update)
    before = np.mean((array(model(IMAGES)) - IMAGES) ** 2)
    model.fit(IMAGES, batch_size=8, epochs=4, verbose=0)
    figures = model.evaluate(IMAGES, batch_size=16, verbose=0, return_dict=True)
    error = np.mean((array(model(IMAGES)) - IMAGES) ** 2)
    assert error < 0.9 * before, (error, before)
    assert int(array(model.quantizer.steps)) == 12
    np.testing.assert_allclose(figures["reconstruction"], error, rtol=1e-5)
    z, indices = array(model.encoder(IMAGES)), array(model.encode(IMAGES))
    distance = np.mean((z - array(model.quantizer.codebook)[indices]) ** 2)
    weight = 1.25 if update.by_gradient else 0.25
    np.testing.assert_allclose(figures["loss"], error + weight * distance, rtol=1e-5)
    p = np.bincount(indices.ravel(), minlength=8) / indices.size
    np.testing.assert_allclose(figures["perplexity"], np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))), rtol=1e-5)
    np.testing.assert_allclose(figures["usage"], np.mean(p > 0), rtol=1e-6)


def test_compiled_and_with_its_images_as_target_it_is_the_same() -> None:
    """To rounding, which in many steps would grow to another code."""
    models = [model_of(), model_of(compiled=BACKEND != "torch")]  # torch.compile takes a minute
    models[0].fit(IMAGES, batch_size=12, verbose=0, shuffle=False)
    models[1].fit(IMAGES, IMAGES, batch_size=12, verbose=0, shuffle=False)
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=1e-4)


def test_a_loss_takes_the_place_of_the_square() -> None:
    model = model_of()
    model.compile("adam", loss="mae", metrics=["mse"], run_eagerly=BACKEND != "jax")
    figures = model.evaluate(IMAGES, IMAGES, verbose=0, return_dict=True)
    x_hat, z, indices = (array(of) for of in (model(IMAGES), model.encoder(IMAGES), model.encode(IMAGES)))
    commitment = 0.25 * np.mean((z - array(model.quantizer.codebook)[indices]) ** 2)
    np.testing.assert_allclose(figures["loss"], np.mean(np.abs(x_hat - IMAGES)) + commitment, rtol=1e-5)
    np.testing.assert_allclose([figures["mse"], figures["reconstruction"]], np.mean((x_hat - IMAGES) ** 2), rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: type(architecture).__name__)
def test_it_comes_back_from_its_file(tmp_path: Path, architecture: Any) -> None:
    model = model_of(architecture)
    model(IMAGES, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)  # its optimizer has seen nothing yet
    assert type(again) is VQVAE and again.run == model.run
    assert array(again.quantizer.n).any()
    require_equal_weights(model, again)
    np.testing.assert_array_equal(array(again.encode(IMAGES)), array(model.encode(IMAGES)))
    np.testing.assert_array_equal(array(again(IMAGES)), array(model(IMAGES)))


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    model = model_of()
    model.fit(IMAGES, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for of in (model, again):
        of.fit(IMAGES, batch_size=8, verbose=0, shuffle=False)
    assert int(array(again.quantizer.steps)) == 6
    require_equal_weights(model, again)


def require_equal_weights(one: VQVAE, other: VQVAE) -> None:
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(array(a), array(b), a.path)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: type(architecture).__name__)
def test_decoding_its_codes_is_the_model(architecture: Any) -> None:
    model = model_of(architecture)
    wide = np.concatenate([IMAGES, IMAGES[:, :, :4]], 2)
    indices = model.encode(wide)
    assert tuple(indices.shape) == (24, 8 // architecture.stride, 12 // architecture.stride)
    np.testing.assert_array_equal(array(model.decode(indices)), array(model(wide)))
    assert tuple(model(wide[:0]).shape) == (0, 8, 12, 1)


def test_any_three_layers_will_do(tmp_path: Path) -> None:
    """Built by the first images; one of them drops out, in training alone."""
    encoder = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
    model = VQVAE(encoder, VectorQuantizer(8), keras.layers.Dense(5))
    x = IMAGES.reshape(-1, 4, 16)[..., :5]
    once, again = array(model(x)), array(model(x))
    np.testing.assert_array_equal(once, again)
    z = array(model.encoder(x))
    assert not np.array_equal(z, array(model.encoder(x, training=True)))
    np.testing.assert_array_equal(array(model.encode(x)), array(model.quantizer.encode(z)))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(again(x)), once)
    assert again.run is None


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((255 * IMAGES).astype(np.uint8), r"images are uint8; they must be floats in \[0, 1\]"),
        (IMAGES[..., 0], "give images their channel axis"),
        (IMAGES[:, :7], "images are 7 x 8; both sides must be multiples of the architecture's stride 2"),
    ],
)
def test_images_that_do_not_fit(images: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_of().fit(images, verbose=0)


def test_what_keras_cannot_build() -> None:
    with pytest.raises(ValueError, match="run scikit-learn's KMeans on outputs of the encoder"):
        VQVAE.of(start=vqkit.KMeans())
    with pytest.raises(ValueError, match=r"architecture is 'resnet'; it must be Patchwise\(\) or Convolutional\(\)"):
        VQVAE.of(architecture="resnet")
    with pytest.raises(ValueError, match=r"quantizer is a Dense; it must be a vqkit\.keras\.VectorQuantizer"):
        VQVAE(*(keras.layers.Dense(4) for _ in range(3)))
    with pytest.raises(ValueError, match="sample_weight weighs no reconstruction without a loss"):
        model_of().fit(IMAGES, IMAGES, sample_weight=np.ones(24), verbose=0)
