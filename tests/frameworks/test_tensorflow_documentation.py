"""``docs/keras.md`` runs from top to bottom in one process, prints what it says, and never imports PyTorch."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import vqkit
import vqkit.keras

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "keras.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
TRAINED = ("one image:", "error of a batch:", "gradient norm")


def blocks() -> list[tuple[str, str]]:
    """Each block of Python, and the output that stands below it, empty where none does."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, in saving
def test_it_runs_and_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the letter, but that numbers which training gave differ from one machine to another."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "documentation"}
    for number, (code, said) in enumerate(blocks(), start=1):
        printed, file = io.StringIO(), tmp_path / f"block_{number}.py"
        file.write_text(code, encoding="utf-8")  # where tf.function looks for the source
        with contextlib.redirect_stdout(printed):
            exec(compile(code, file, "exec"), names)
        shown = printed.getvalue()
        print(shown)
        assert NUMBER.sub("#", shown).split() == NUMBER.sub("#", said).split(), f"block {number} printed:\n{shown}"
        if not shown.startswith(TRAINED):
            found, written = ([float(x) for x in NUMBER.findall(text)] for text in (shown, said))
            assert found == pytest.approx(written, rel=0.02), f"block {number} printed:\n{shown}"
    history, restored, held_out = names["history"], names["restored"], names["held_out"]
    assert np.mean((restored - held_out) ** 2) < 0.02
    assert history["perplexity"][-1] > 30
    assert number > 10
    assert "torch" not in sys.modules


# --- What EMA in ``call`` costs: the rows of the page's table -------------------------------------------------------

Z = np.random.default_rng(1).standard_normal((64, 4)).astype("float32")
CODES = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")


def ema(decay: float = 0.9, **arguments) -> vqkit.keras.VectorQuantizer:
    layer = vqkit.keras.VectorQuantizer(8, 4, update=vqkit.EMA(decay), start=vqkit.Given(CODES), **arguments)
    layer.build((None, 4))
    return layer


def after(steps: int) -> np.ndarray:
    """The codebook after so many whole steps on Z."""
    layer = ema()
    for _ in range(steps):
        layer(Z, training=True)
    return layer.codebook.numpy()


def trained(layer, batch: int = 64, optimizer=None, **compiled) -> vqkit.keras.VectorQuantizer:
    """The layer behind an encoder that hands Z on, after an epoch of ``fit``."""
    identity = keras.layers.Dense(4, kernel_initializer="identity", trainable=compiled.pop("encoder_learns", True))
    model = keras.Sequential([keras.Input((4,)), identity, layer, keras.layers.Dense(4)])
    model.compile(optimizer or keras.optimizers.SGD(0.0), "mse", **compiled)
    model.fit(Z, Z, batch_size=batch, shuffle=False, verbose=0)
    return layer


@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}, {"encoder_learns": False}], ids=str)
def test_one_step_of_fit_is_one_step_of_the_codebook(arguments) -> None:
    np.testing.assert_allclose(trained(ema(), **arguments).codebook.numpy(), after(1), atol=1e-6)


def test_nothing_learns_in_evaluation_nor_where_it_is_not_trainable() -> None:
    layer = ema()
    layer(Z)
    layer(Z, training=False)
    keras.Sequential([layer]).predict(Z, verbose=0)
    layer.trainable = False
    layer(Z, training=True)
    assert (layer.codebook.numpy() == CODES).all()


def test_gradients_add_nothing_to_the_call() -> None:
    layer, z = ema(), tf.Variable(Z)
    with tf.GradientTape() as outer:
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_sum(layer(z, training=True) ** 2)
        penalty = tf.reduce_sum(tape.gradient(loss, z) ** 2) + tf.reduce_sum(tape.gradient(loss, z))
    outer.gradient(penalty, z)
    assert (layer.codebook.numpy() == after(1)).all()


def test_two_calls_of_a_shared_layer_are_two_steps() -> None:
    layer, inputs = ema(), keras.Input((4,))
    keras.Model(inputs, keras.layers.add([layer(inputs), layer(inputs)]))(Z, training=True)
    np.testing.assert_allclose(layer.codebook.numpy(), after(2), atol=1e-6)


def test_gradient_accumulation_is_a_step_for_each_micro_batch() -> None:
    layer = trained(ema(), batch=16, optimizer=keras.optimizers.SGD(0.0, gradient_accumulation_steps=4))
    by_hand = ema()
    for quarter in np.split(Z, 4):
        by_hand(quarter, training=True)
    np.testing.assert_allclose(layer.codebook.numpy(), by_hand.codebook.numpy(), atol=1e-6)
    assert abs(layer.codebook.numpy() - after(1)).max() > 0.1


def test_rematerialisation_learns_twice() -> None:
    with keras.RematScope(mode="full"):
        inside = ema()
    outside, recomputed = ema(), ema()
    calls = {inside: inside, recomputed: tf.recompute_grad(lambda z, training: recomputed(z, training=training))}
    for layer, call in {**calls, outside: outside}.items():
        z = tf.Variable(Z)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(z, training=True) ** 2)
        tape.gradient(loss, z)
        assert int(layer.steps.numpy()) == (1 if layer is outside else 2)
        np.testing.assert_allclose(layer.codebook.numpy(), after(1 if layer is outside else 2), atol=1e-6)
    with keras.RematScope(mode="full"):
        layer = ema()
    with pytest.raises(ValueError, match="custom_gradient decorator currently supports keywords arguments only"):
        trained(layer)


def test_a_step_that_a_loss_scaler_skips_moves_the_codebook() -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**40)
    layer = ema(dtype="mixed_float16")
    with tf.GradientTape() as tape:
        w = keras.Variable(np.eye(4, dtype="float32"))
        z = tf.cast(tf.matmul(Z, tf.convert_to_tensor(w)), tf.float16)
        loss = optimizer.scale_loss(tf.reduce_mean(tf.cast(layer(z, training=True), tf.float32) ** 2))
    optimizer.apply_gradients([(tape.gradient(loss, w.value), w)])
    assert (w.numpy() == np.eye(4)).all()  # the gradient overflowed, and the step was skipped
    np.testing.assert_allclose(layer.codebook.numpy(), after(1), atol=1e-3)
