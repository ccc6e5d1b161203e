"""``vqkit.keras.VectorQuantizer`` in TensorFlow: the search, loops by hand, XLA, both estimators, ``IndexedSlices``."""

from __future__ import annotations

import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import vqkit
from vqkit import reference
from vqkit.keras import VectorQuantizer, straight_through_custom_gradient, straight_through_stop_gradient
from vqkit.keras.search import _repeated, search

N, D, K = 48, 3, 16
MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- the search ---------------------------------------------------------------------------------------------------


def permuted() -> tuple[np.ndarray, np.ndarray]:
    """Every code is as far away as every other; only the rounding of sums in order of d tells them apart."""
    rng = np.random.default_rng(5)
    difference = rng.standard_normal(24)
    codes = np.stack([difference[rng.permutation(24)] for _ in range(64)])
    return np.zeros((40, 24)), codes


def far() -> tuple[np.ndarray, np.ndarray]:
    return normal(700, 8) + np.float32(1e4), normal(64, 8, seed=1) + np.float32(1e4)


def doubled() -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(normal(5, 8), 70, 0), np.repeat(normal(5, 8, seed=1), 3, 0)


def overflowing() -> tuple[np.ndarray, np.ndarray]:
    """Half the square of the nearest code is no float32, but the score of another is."""
    return np.float32([[1.25e19, 0]]), np.float32([[2.65e19, 0], [0, 1.5e19], [-2.65e19, -1.5e19]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data", [permuted, far, doubled, overflowing])
def test_the_search_is_the_definition(data: Callable, mode: str) -> None:
    """More rows in doubt than one block holds, too."""
    z, codes = data()
    found = MODES[mode](search)(tf.constant(z), tf.constant(codes))
    assert (found.numpy() == reference.nearest(z, codes)).all()


def test_the_permuted_codes_tell_rounding_apart() -> None:
    """Were products and sums contracted, or summed in another order, another code would be the nearest."""
    z, codes = permuted()
    backwards = reference.nearest(z[:, ::-1], codes[:, ::-1])
    assert (backwards != reference.nearest(z, codes)).all()
    exact = [sum(round(x * 2**60) ** 2 for x in code) for code in codes]
    assert np.ptp([float(x - exact[0]) for x in exact]) == 0  # in exact arithmetic they all tie
    assert reference.nearest(z, codes)[0] != 0


def test_repeated_codes_are_found_and_no_others() -> None:
    """Else every row of a codebook of equal codes would go through the definition."""
    codes = np.concatenate([normal(6, 3), np.full((2, 3), 1e-40, np.float32)])
    codes[-1, 0] *= 2  # TensorFlow compares these as zeros
    chosen = np.random.default_rng(2).integers(0, len(codes), 40)
    repeated = np.array([k in chosen[:place] for place, k in enumerate(chosen)])
    for dtype in (np.float32, np.float64):
        table = tf.constant(codes[chosen], dtype)
        found = _repeated(table, tf.reduce_sum(table, 1)).numpy()
        assert not (found & ~repeated).any() and (found == repeated)[chosen < 6].all()
        assert sum(_repeated(table, tf.zeros(40)).numpy()) == (chosen[1:] == chosen[0]).sum()  # one key for all


def test_a_graph_of_any_batch_size() -> None:
    codes = normal(K, D, seed=1)
    graph = tf.function(lambda z: search(z, tf.constant(codes)), input_signature=[tf.TensorSpec((None, D), tf.float32)])
    for rows in (0, 1, N, 70_000):  # the last in two chunks
        z = normal(rows, D)
        assert (graph(z).numpy() == reference.nearest(z, codes)).all()


def test_a_compiled_step_holds_neither_scores_nor_ones_for_all_vectors() -> None:
    layer, rows = VectorQuantizer(512, 8, update=vqkit.EMA(0.9)), 16_384
    layer.build((None, 8))

    @tf.function(jit_compile=True)
    def step(z: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(z)
            objective = tf.reduce_sum(layer(z, training=True)) + layer.losses[0]
        return tape.gradient(objective, z)

    program = step.experimental_get_compiler_ir(tf.zeros((rows, 8)))(stage="optimized_hlo")
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"\[(\d+(?:,\d+)*)\]", program)]
    assert max(sizes) >= rows * 8  # the pattern finds what is there
    assert max(sizes) <= 2**20  # a chunk; all scores would be eight of them


# --- loops by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_with_a_tape(mode: str) -> None:
    keras.utils.set_random_seed(0)
    encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(D)
    layer = VectorQuantizer(K, start=vqkit.Normal())
    optimizer, x = keras.optimizers.Adam(0.02), normal(N, D)
    layer.build((None, 4)), encoder.build((None, D)), decoder.build((None, 4))
    variables = encoder.trainable_weights + layer.trainable_weights + decoder.trainable_weights
    optimizer.build(variables)

    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            z_q, _, losses = layer.quantized(encoder(x), training=True)
            loss = tf.reduce_mean((decoder(z_q) - x) ** 2) + losses.total
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    step = MODES[mode](step)
    loss = [float(step()) for _ in range(10)]
    assert loss[-1] < 0.9 * loss[0]
    assert int(layer.steps.numpy()) == 10


def test_what_is_not_finite_shows_in_a_graph_and_is_not_learnt() -> None:
    layer, z = VectorQuantizer(K, D, start=vqkit.Normal(), update=vqkit.EMA(0.5)), normal(N, D)
    z[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity \(the first is in vector 7"):
        layer(z)
    z_q = tf.function(lambda z: layer(z, training=True))(z).numpy()
    assert (np.isnan(z_q).any(1) == (np.arange(N) == 7)).all()
    assert np.isfinite(layer.codebook.numpy()).all() and layer.codebook_usage.numpy().sum() == N - 1


# --- the estimators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_both_spellings_have_equal_values_and_gradients(mode: str) -> None:
    """Of encoder, codebook and decoder, to the bit; and the layer's are the same."""
    x, codes = tf.constant(normal(N, 5)), normal(K, D, seed=1)
    encoder, decoder = (tf.Variable(normal(*shape, seed=2)) for shape in ((5, D), (D, 5)))
    codebook, layer = tf.Variable(codes), VectorQuantizer(K, D, start=vqkit.Given(codes))
    layer.build((None, D))

    def by_hand(straight_through: Callable, indices: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            z = x @ encoder
            e = tf.gather(codebook, indices)
            z_q = straight_through(z, e)
            of_codebook = tf.reduce_mean((tf.stop_gradient(z) - e) ** 2)
            commitment = 0.25 * tf.reduce_mean((z - tf.stop_gradient(e)) ** 2)
            loss = tf.reduce_mean((z_q @ decoder - x) ** 2) + of_codebook + commitment
        return loss, z_q, *map(tf.convert_to_tensor, tape.gradient(loss, (encoder, codebook, decoder)))

    def by_layer() -> tuple:
        with tf.GradientTape() as tape:
            z_q, _, losses = layer.quantized(x @ encoder)
            loss = tf.reduce_mean((z_q @ decoder - x) ** 2) + losses.total
        gradients = tape.gradient(loss, (encoder, layer.codebook.value, decoder))
        return loss, z_q, *map(tf.convert_to_tensor, gradients)

    def all_three() -> tuple:
        indices = search(x @ encoder, codebook)
        spellings = straight_through_stop_gradient, straight_through_custom_gradient
        return *(by_hand(spelling, indices) for spelling in spellings), by_layer()

    for one, other, third in zip(*MODES[mode](all_three)(), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(third, one, rtol=2e-5, atol=1e-7)


# --- the gradient of the codebook ---------------------------------------------------------------------------------


def slices_and_dense(layer: VectorQuantizer, z: np.ndarray) -> tuple[tf.IndexedSlices, np.ndarray, np.ndarray]:
    with tf.GradientTape() as tape:
        _, indices, losses = layer.quantized(z)
    gradient = tape.gradient(losses.total, layer.codebook.value)
    codes = layer.codebook.numpy()
    return gradient, indices.numpy(), reference.losses_gradient(z, codes, reference.nearest(z, codes), 0.25)[1]


def test_the_gradient_of_the_codebook_is_slices_as_looked_up() -> None:
    layer, z = VectorQuantizer(K, D, start=vqkit.Normal(), seed=0), normal(N, D)
    gradient, indices, dense = slices_and_dense(layer, z)
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.indices.numpy().tolist() == indices.tolist() and len(set(indices)) < N
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), dense, rtol=1e-5, atol=1e-7)
    # Squared slice by slice and then added, as Keras's Adam does, it is the square of the gradient.
    squares = tf.IndexedSlices(gradient.values**2, gradient.indices, gradient.dense_shape)
    np.testing.assert_allclose(tf.convert_to_tensor(squares), dense**2, rtol=1e-5, atol=1e-9)


OPTIMIZERS = {
    "sgd": (lambda: keras.optimizers.SGD(0.1), False),
    "momentum": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), True),
    "adam": (lambda: keras.optimizers.Adam(0.1), True),
    "adamw": (lambda: keras.optimizers.AdamW(0.1, weight_decay=0.0), True),
    "adamw, decaying": (lambda: keras.optimizers.AdamW(0.1, weight_decay=0.01), True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_does_to_rows_that_were_not_looked_up(name: str) -> None:
    """As with a dense gradient: memory moves a row that was looked up before, and decay moves every row."""
    make, moves_on = OPTIMIZERS[name]
    codes = 10.0 * np.eye(4, D + 1, dtype=np.float32)
    batches = [np.repeat(codes[rows], 5, 0) + normal(5 * len(rows), D + 1) for rows in ([0, 1], [0])]
    trained = {}
    for kind in ("slices", "dense"):
        layer, optimizer, path = VectorQuantizer(4, D + 1, start=vqkit.Given(codes)), make(), [codes]
        for z in batches:
            with tf.GradientTape() as tape:
                losses = layer.quantized(z).losses
            gradient = tape.gradient(losses.total, layer.codebook.value)
            assert set(gradient.indices.numpy()) == ({0, 1} if len(path) == 1 else {0})
            optimizer.apply([gradient if kind == "slices" else tf.convert_to_tensor(gradient)], [layer.codebook])
            path.append(layer.codebook.numpy())
        trained[kind] = path
    for one, other in zip(trained["slices"], trained["dense"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    start, first, second = trained["slices"]
    decays = name.endswith("decaying")
    assert (first[0] != start[0]).any() and (second[0] != first[0]).any()  # looked up twice
    assert (first[1] != start[1]).any() and (second[1] != first[1]).any() == moves_on  # in the first step alone
    assert (second[2:] != start[2:]).any() == decays  # never
    if decays:
        np.testing.assert_allclose(second[2:], start[2:] * (1 - 0.1 * 0.01) ** 2, rtol=1e-6)
