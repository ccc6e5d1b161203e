"""``tf.gather``, ``tf.IndexedSlices`` and ``apply_gradients``: what is said and printed of them, and what happens."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import vqkit
import vqkit.keras

LOOKED_UP = [1, 3, 3, 7]
RATE = 0.01
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(RATE),
    "momentum": lambda: keras.optimizers.SGD(RATE, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(RATE),
    "AdamW": lambda: keras.optimizers.AdamW(RATE, weight_decay=0.01),
}


def table() -> tf.Variable:
    return tf.Variable(np.random.default_rng(0).standard_normal((10, 3)), dtype=tf.float32)


def gradient_of_squares(e: tf.Variable, k, penalty: float | None = None):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(tf.gather(e, k)))
        if penalty is not None:
            loss += penalty * tf.reduce_sum(tf.square(e))
    return tape.gradient(loss, e)


# --- "Here's a minimal reproducible test" ----------------------------------------------------------------------------


def test_the_demonstration_as_printed_has_no_gradient() -> None:
    """It gathers before the tape begins, so what it prints last is an error."""
    e = tf.Variable(tf.random.normal([10, 3]))
    k = tf.constant([1, 3, 7])
    e_q = tf.gather(e, k)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(e_q))
    grads = tape.gradient(loss, e)
    assert grads is None
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'indices'"):
        print(grads.indices.numpy())


def test_gathered_on_the_tape_it_prints_what_was_promised() -> None:
    e = table()
    grads = gradient_of_squares(e, tf.constant([1, 3, 7]))
    assert isinstance(grads, tf.IndexedSlices)
    assert grads.indices.numpy().tolist() == [1, 3, 7]
    assert (grads.values.numpy() == 2 * e.numpy()[[1, 3, 7]]).all()
    assert grads.dense_shape.numpy().tolist() == [10, 3]


def test_indices_are_as_looked_up_with_repeats_and_sum_to_the_dense_gradient() -> None:
    """ "indices: which codebook rows were involved": one entry for each look-up, in its order, not one for each row."""
    e = table()
    grads = gradient_of_squares(e, LOOKED_UP)
    assert grads.indices.numpy().tolist() == LOOKED_UP
    with tf.GradientTape() as tape:  # the same loss by a product with ones and zeros, whose gradient is dense
        loss = tf.reduce_sum(tf.square(tf.matmul(tf.one_hot(LOOKED_UP, 10), e)))
    dense = tape.gradient(loss, e)
    assert not isinstance(dense, tf.IndexedSlices)
    np.testing.assert_array_equal(tf.convert_to_tensor(grads), dense)


def test_another_use_of_the_table_makes_the_gradient_dense() -> None:
    """ "It avoids allocating [K, D] tensors": until a penalty, say, uses the whole table."""
    grads = gradient_of_squares(table(), LOOKED_UP, penalty=0.1)
    assert isinstance(grads, tf.Tensor)
    assert grads.shape == (10, 3)
    assert tf.reduce_all(grads != 0)


# --- "apply_gradients() only updates e[k[i]]" ------------------------------------------------------------------------


def test_the_line_that_applies_it_fails_as_printed_in_three_ways() -> None:
    optimizer, e = keras.optimizers.SGD(RATE), table()
    embedding = keras.layers.Embedding(10, 3)
    grads = gradient_of_squares(e, LOOKED_UP)
    with pytest.raises(NameError, match="'grad' is not defined"):  # the line above it defines grads
        exec("optimizer.apply_gradients(zip([grad], [embedding]))", locals())
    with pytest.raises(AttributeError, match="'Embedding' object has no attribute"):  # a layer is no variable
        optimizer.apply_gradients(zip([grads], [embedding], strict=True))
    embedding.build(None)
    optimizer.apply_gradients(zip([grads], [embedding.embeddings], strict=True))
    with pytest.raises(TypeError, match="does not support item assignment"):
        e[3] -= RATE * grads.values[1]  # embedding[k[i]] -= lr * grad[i]
    with pytest.raises(TypeError, match="not subscriptable"):
        grads[1]


def test_the_right_scatter_is_a_subtraction_that_sums_repeats() -> None:
    """ "TensorFlow uses scatter_add() under the hood": the sign is minus, and row 3 moves twice."""
    e, by_hand, once = table(), table(), table()
    grads = gradient_of_squares(e, LOOKED_UP)
    keras.optimizers.SGD(RATE).apply_gradients([(grads, e)])
    by_hand.scatter_nd_sub(grads.indices[:, None], RATE * grads.values)
    np.testing.assert_allclose(e, by_hand, rtol=1e-6)
    # A single assignment of all rows, which is what "embedding[k[i]] -= lr * grad[i]" is with arrays in NumPy.
    moved = once.numpy()
    moved[LOOKED_UP] -= RATE * grads.values.numpy()
    assert abs(moved - e.numpy())[3].max() > 1e-3
    np.testing.assert_allclose(np.delete(moved, 3, 0), np.delete(e.numpy(), 3, 0), rtol=1e-6)


# Whether a row moves that is never looked up, and one in the 100 steps after its only look-up. Its gradient is zero;
# the step need not be.
MOVES = {"SGD": (False, False), "momentum": (False, True), "Adam": (False, True), "AdamW": (True, True)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_are_not_looked_up(name: str) -> None:
    """Of a plain table; our layer's: ``test_what_an_optimizer_does_to_rows_that_were_not_looked_up``."""
    e = tf.Variable(np.random.default_rng(0).standard_normal((3, 2)).astype("float32"))
    optimizer, tables = OPTIMIZERS[name](), [e.numpy()]
    for rows in [[0, 1], *[[1]] * 100]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.gather(e, rows) - 1.0) ** 2)
        gradient = tape.gradient(loss, e)
        assert isinstance(gradient, tf.IndexedSlices)
        assert gradient.indices.numpy().tolist() == rows
        optimizer.apply_gradients([(gradient, e)])
        tables.append(e.numpy())
    never, later = bool((tables[-1] != tables[0])[2].any()), bool((tables[-1] != tables[1])[0].any())
    assert (never, later) == MOVES[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_looked_up_often_moves_as_by_the_dense_gradient_under_our_layer(name: str) -> None:
    """Keras's Adam squares each slice and adds the squares up, so the table of a plain gather moves too far."""
    codes = table().numpy()
    moved = {}
    for kind in ("ours", "gather", "dense"):
        layer = vqkit.keras.VectorQuantizer(10, 3, start=vqkit.Given(codes), commitment=0.0)
        layer.build((None, 3))
        optimizer = OPTIMIZERS[name]()
        for step in range(8):
            z = tf.constant(np.random.default_rng(step).standard_normal((40, 3)), tf.float32)
            with tf.GradientTape() as tape:
                layer(z)
                own = sum(layer.losses)
                rows = tf.gather(layer.codebook.value, layer.encode(z))
                loss = own if kind == "ours" else tf.reduce_mean((rows - z) ** 2)
            gradient = tape.gradient(loss, layer.codebook)
            assert isinstance(gradient, tf.IndexedSlices)
            gradient = tf.convert_to_tensor(gradient) if kind == "dense" else gradient
            optimizer.apply_gradients([(gradient, layer.codebook)])
        moved[kind] = layer.codebook.numpy()
    np.testing.assert_allclose(moved["ours"], moved["dense"], atol=1e-5)
    off = abs(moved["gather"] - moved["dense"]).max()
    assert off > 0.01 if name.startswith("Adam") else off < 1e-5


# --- "The alternative: exponential moving averages" ------------------------------------------------------------------


def test_the_printed_average_is_no_tensorflow_and_not_the_published_one() -> None:
    """``e[i] = decay * e[i] + (1 - decay) * z_i_mean``: one vector then weighs as much as 99."""
    decay, e = 0.5, tf.Variable([[0.0]])
    with pytest.raises(TypeError, match="does not support item assignment"):
        e[0] = decay * e[0] + (1 - decay) * 1.0
    batches = [np.zeros((99, 1), "float32"), np.ones((1, 1), "float32")]
    for batch in batches:
        e.scatter_nd_update([[0]], [decay * e[0] + (1 - decay) * batch.mean(0)])
    assert e.numpy() == 0.5

    layer = vqkit.keras.VectorQuantizer(1, 1, start=vqkit.Given(np.zeros((1, 1))), update=vqkit.EMA(decay))
    n, total = 1.0, 0.0  # a given code starts as one vector per step
    for batch in batches:
        layer(batch, training=True)
        n, total = decay * n + (1 - decay) * len(batch), decay * total + (1 - decay) * float(batch.sum())
    np.testing.assert_allclose(layer.codebook.numpy(), [[total / n]], rtol=1e-5)
    assert layer.codebook.numpy() < 0.02  # 0.5 / 25.5
