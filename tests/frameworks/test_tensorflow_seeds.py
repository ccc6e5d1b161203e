"""The TensorFlow that people are given in answers about VQ-VAE: as it is printed, what really happens; then corrected.

The two conversations quoted here explain a layer line by line, and ask for a confirmation of ``@tf.custom_gradient``.
Each statement that can be checked is a test; ``test_tensorflow_optimizers.py`` has those about ``apply_gradients``,
``test_tensorflow_quoted.py`` the lines that are quoted alone.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import vqkit
import vqkit.keras

CODES, DIM = 16, 4

# As printed, in a function's head and end: three lines are no Python, two of them halves of a broken comment.
PRINTED = """
def quantize(self, x, training):
    z = self.encoder(x, training=training)
    B, H, W, C = tf.unstack(tf.shape(z))
    z_flat = tf.reshape(z, [-1, self.embedding_dim])
    e = self.embedding.weights[0]
    dist = (tf.reduce_sum(z_flat**2, 1, keepdims=True)
         - 2 * tf.matmul(z_flat, e, transpose_b=True)
         + tf.reduce_sum(e**2, 1))
    k = tf.argmin(dist, axis=1) # The indices of the chosen
codes
    e_q = tf.gather(e, k)
    # Update usage statistics during training
    if training:
      # EXPONENTIAL DECAY
      decay = 0.99
      self.codebook_usage.assign(self.codebook_usage *
decay)
      # Get one-hot representation of which codes were
used
      k_one_hot = tf.one_hot(k, self.num_embeddings)
      # Sum up usage across the batch
      usage_in_batch = tf.reduce_sum(k_one_hot, axis=0)
      # Update the long-term usage tracker
      self.codebook_usage.assign_add(usage_in_batch)
    commitment_loss = tf.reduce_mean(tf.square(z_flat -
tf.stop_gradient(e_q)))
    codebook loss =
tf.reduce_mean(tf.square(tf.stop_gradient(z_flat) - e_q))
    z_q = tf.reshape(z_flat + tf.stop_gradient(e_q - z_flat), [B,
H, W, C])
    x_hat = self.decoder(z_q, training=training)
    return locals()
"""
JOINED_ONE = PRINTED.replace("chosen\ncodes", "chosen codes")
JOINED = JOINED_ONE.replace("were\nused", "were used")
CORRECTED = JOINED.replace("codebook loss =\n", "codebook_loss = ")


class Model:
    """What the printed lines take for granted: an encoder, a decoder, a table that is built, a count of usage."""

    def __init__(self, source: str = CORRECTED) -> None:
        keras.utils.set_random_seed(0)
        self.embedding_dim, self.num_embeddings = DIM, CODES
        self.encoder, self.decoder = keras.layers.Dense(DIM), keras.layers.Dense(3)
        self.embedding = keras.layers.Embedding(CODES, DIM, embeddings_initializer="random_normal")
        self.embedding.build(None)
        self.codebook_usage = tf.Variable(tf.zeros(CODES))
        self.x = tf.random.normal((2, 4, 4, 3), seed=1)
        names = {"tf": tf}
        exec(compile(source, "printed", "exec"), names)
        self.quantize = lambda training=True: names["quantize"](self, self.x, training)  # type: ignore[operator]

    def gradients(self, of) -> dict[str, object]:
        """Of one of the printed tensors, or of what ``of`` makes of them, by each part's first weight."""
        with tf.GradientTape() as tape:
            names = self.quantize()
            loss = of(names) if callable(of) else names[of]
        parts = {"encoder": self.encoder, "codebook": self.embedding, "decoder": self.decoder}
        return dict(zip(parts, tape.gradient(loss, [part.weights[0] for part in parts.values()]), strict=True))


def reconstruction(names) -> tf.Tensor:
    return tf.reduce_mean((names["self"].x - names["x_hat"]) ** 2)


def nearest(z: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
    return tf.gather(codes, tf.argmin(tf.reduce_sum((z[:, None] - codes) ** 2, 2), axis=1))


def normal(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


# --- The layer, line by line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "line"),
    [(PRINTED, "unexpected indent", "    e_q = tf.gather(e, k)\n"),
     (JOINED_ONE, "unexpected indent", "      k_one_hot = tf.one_hot(k, self.num_embeddings)\n"),
     (JOINED, "invalid syntax", "    codebook loss =\n")],
    ids=["as printed", "one comment joined", "both joined"],
)  # fmt: skip
def test_the_layer_as_printed_is_no_python_for_three_reasons(source: str, error: str, line: str) -> None:
    with pytest.raises(SyntaxError, match=error) as caught:
        compile(source, "printed", "exec")
    assert caught.value.text == line


def test_an_embedding_has_no_weight_zero_before_it_is_built() -> None:
    """``e = self.embedding.weights[0]`` in a model whose ``call`` never calls the embedding, which would build it."""
    embedding = keras.layers.Embedding(CODES, DIM)
    with pytest.raises(IndexError, match="list index out of range"):
        embedding.weights[0]
    embedding.build(None)
    assert embedding.weights[0].shape == (CODES, DIM)


@pytest.mark.parametrize("compiled", [False, True])
def test_corrected_it_runs_and_chooses_the_nearest(compiled: bool) -> None:
    model = Model()
    names = ("z_q", "z_flat", "k", "x_hat")
    out = {name: model.quantize()[name] for name in names}
    if compiled:  # `B, H, W, C = tf.unstack(tf.shape(z))` passes in a graph too
        out = tf.function(lambda: {name: model.quantize()[name] for name in names})()
    assert out["z_q"].shape == (2, 4, 4, DIM)
    z, codes = out["z_flat"].numpy().astype("float64"), model.embedding.weights[0].numpy().astype("float64")
    assert out["k"].numpy().tolist() == ((z[:, None] - codes) ** 2).sum(2).argmin(1).tolist()


def test_the_printed_usage_is_our_layers_codebook_usage() -> None:
    """``usage *= 0.99; usage += one_hot(k).sum(0)`` at each step of training."""
    model = Model()
    ours = vqkit.keras.VectorQuantizer(CODES, DIM, start=vqkit.Given(model.embedding.weights[0].numpy()))
    for step in range(5):
        model.x = normal(2, 4, 4, 3, seed=step)
        ours(model.quantize(training=True)["z"], training=True)
    np.testing.assert_allclose(ours.codebook_usage.numpy(), model.codebook_usage.numpy(), rtol=1e-6)
    before = model.codebook_usage.numpy()
    ours(model.quantize(training=False)["z"], training=False)
    assert (model.codebook_usage.numpy() == before).all()
    np.testing.assert_allclose(ours.codebook_usage.numpy(), before, rtol=1e-6)


# --- "In the forward pass, this is equal to e_q" --------------------------------------------------------------------


def test_adding_and_subtracting_is_the_code_only_to_rounding() -> None:
    z, codes = normal(4096, 64), normal(512, 64, seed=1)
    q = nearest(z, codes)
    added = z + tf.stop_gradient(q - z)
    np.testing.assert_allclose(added, q, atol=1e-6)
    assert 0.2 < np.mean(added.numpy() != q.numpy()) < 0.5
    low, low_q = tf.cast(z, tf.bfloat16), tf.cast(q, tf.bfloat16)
    assert tf.reduce_max(abs(tf.cast(low + (low_q - low), tf.float32) - tf.cast(low_q, tf.float32))) > 0.01
    layer = vqkit.keras.VectorQuantizer(512, 64, start=vqkit.Given(codes.numpy()))
    assert (layer(z).numpy() == q.numpy()).all()


def test_subtracting_instead_of_adding_has_the_right_gradient_and_the_wrong_value() -> None:
    """``inputs - tf.stop_gradient(quantized - inputs)``, confirmed as equivalent: it is 2 z - q, which is no code."""
    z, codes, upstream = normal(64, DIM), normal(CODES, DIM, seed=1), normal(64, DIM, seed=2)
    q = nearest(z, codes)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        added, slip = z + tf.stop_gradient(q - z), z - tf.stop_gradient(q - z)
    for way in (added, slip):
        assert (tape.gradient(way, z, output_gradients=upstream).numpy() == upstream.numpy()).all()
    np.testing.assert_allclose(slip, 2 * z - q, atol=1e-6)
    np.testing.assert_allclose(slip - q, 2 * (z - q), atol=1e-6)  # twice as far from the code as z is
    assert tf.reduce_mean(abs(slip - q)) > 0.5


# --- "Which loss trains which weights?" ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "trained"),
    [
        (reconstruction, ["encoder", "decoder"]),
        ("commitment_loss", ["encoder"]),
        ("codebook_loss", ["codebook"]),
        (lambda names: tf.reduce_sum(names["dist"]), ["encoder", "codebook"]),  # if one used it, which no loss does
    ],
    ids=["reconstruction", "commitment", "codebook", "distances"],
)
def test_each_loss_trains_what_it_is_said_to_train(loss, trained: list[str]) -> None:
    found = Model().gradients(loss)
    assert [part for part, gradient in found.items() if gradient is not None] == trained
    assert all(tf.reduce_any(tf.convert_to_tensor(found[part]) != 0) for part in trained)


def test_argmin_lets_no_gradient_pass_and_the_lookup_does() -> None:
    """The codebook's gradient is that of the chosen rows alone, 2 (e - z) / (N D) for each look-up of a row."""
    model = Model()
    with tf.GradientTape(persistent=True) as tape:
        names = model.quantize()
        k = tf.cast(names["k"], tf.float32)
    e, z, chosen = names["e"].numpy().astype("float64"), names["z_flat"].numpy().astype("float64"), names["k"].numpy()
    assert tape.gradient(k, names["z_flat"]) is None
    assert tape.gradient(k, names["e"]) is None
    gradient = tf.convert_to_tensor(tape.gradient(names["codebook_loss"], names["e"]))
    by_hand = np.zeros_like(e)
    np.add.at(by_hand, chosen, 2 * (e[chosen] - z) / z.size)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-5, atol=1e-8)
    assert 0 < len(set(chosen)) < CODES


def test_stopping_the_code_leaves_the_encoder_the_commitment_and_the_codebook_nothing() -> None:
    """``z_q = tf.stop_gradient(e_q)``: "gradients flow into e_q (if allowed)" is what the stop forbids."""
    stopped = Model(CORRECTED.replace("z_flat + tf.stop_gradient(e_q - z_flat)", "tf.stop_gradient(e_q)"))
    found = stopped.gradients(reconstruction)
    assert [part for part, gradient in found.items() if gradient is not None] == ["decoder"]
    assert tf.reduce_any(stopped.gradients("commitment_loss")["encoder"] != 0)  # "no signal" is not quite right
    open_ = Model(CORRECTED.replace("z_flat + tf.stop_gradient(e_q - z_flat)", "e_q"))
    found = open_.gradients(reconstruction)
    assert [part for part, gradient in found.items() if gradient is not None] == ["codebook", "decoder"]


def test_backward_differentiates_the_decoder_at_the_code_and_not_at_z() -> None:
    """It is said to act "as if the decoder saw z_flat". Of q**3 with z 1.4 and code 1 the derivative is 3, not 5.88."""
    z = tf.Variable([[1.4]])
    layer = vqkit.keras.VectorQuantizer(2, 1, start=vqkit.Given(np.array([[1.0], [3.0]])))
    with tf.GradientTape(persistent=True) as tape:
        printed = tf.reduce_sum((z + tf.stop_gradient(nearest(z, tf.constant([[1.0], [3.0]])) - z)) ** 3)
        ours = tf.reduce_sum(layer(z) ** 3)
    np.testing.assert_allclose(tape.gradient(printed, z), [[3.0]], rtol=1e-6)
    assert tape.gradient(ours, z).numpy() == 3.0


# --- "shouldn't a custom gradient def grad(dy): return dy yield the same result?" ------------------------------------


def test_the_question_as_printed_is_no_python() -> None:
    printed = "def __init__(self, codebook = None, **kwargs):\n        super().__init__(**kwargs)\n       ... init ...."
    with pytest.raises(IndentationError):
        compile(printed, "printed", "exec")


class Fixed(keras.layers.Layer):
    """As the question has it, with "regular VQ stuff" in place."""

    learns = False

    def build(self, input_shape) -> None:
        initializer = keras.initializers.RandomNormal(stddev=1.0, seed=1)
        self.codebook = self.add_weight(shape=(CODES, DIM), initializer=initializer, trainable=self.learns)

    @tf.custom_gradient
    def call(self, inputs):
        def grad(dy):
            return dy

        quantized = nearest(inputs, self.codebook)
        return quantized, grad


class Learning(Fixed):
    learns = True


class Mended(Learning):
    """What the error asks for, answered with None: the function has no gradient for the codebook."""

    @tf.custom_gradient
    def call(self, inputs):
        def grad(dy, variables):
            return dy, [None for _ in variables]

        quantized = nearest(inputs, self.codebook)
        return quantized, grad


class Given(Learning):
    """The gradient of a plain look-up, by hand: each row gets the sum of what arrives at its look-ups."""

    @tf.custom_gradient
    def call(self, inputs):
        indices = tf.argmin(tf.reduce_sum((inputs[:, None] - self.codebook) ** 2, 2), axis=1)

        def grad(dy, variables):
            return dy, [tf.IndexedSlices(dy, indices, dense_shape=(CODES, DIM)) for _ in variables]

        return tf.gather(self.codebook, indices), grad


def taped(layer: keras.layers.Layer, z: tf.Tensor):
    """The layer's value, and what z and the codebook receive of a gradient that is not the same anywhere."""
    layer.build(z.shape)
    upstream = normal(*z.shape, seed=2)
    with tf.GradientTape() as tape:
        tape.watch(z)
        z_q = layer(z)
    return z_q, upstream, *tape.gradient(z_q, [z, layer.codebook], output_gradients=upstream)


def test_custom_gradient_on_call_is_right_for_a_codebook_that_does_not_learn() -> None:
    layer, z = Fixed(), normal(64, DIM)
    z_q, upstream, at_z, _ = taped(layer, z)
    assert (at_z.numpy() == upstream.numpy()).all()
    assert (z_q.numpy() == nearest(z, layer.codebook).numpy()).all()  # codes to the bit, unlike z + stop(q - z)
    model = keras.Sequential([keras.layers.Dense(DIM), Fixed(), keras.layers.Dense(3)])
    x = normal(32, 3)
    model.compile("sgd", "mse")
    model(x)
    before = [weight.numpy() for weight in model.weights]
    model.fit(x, x, verbose=0)
    moved = {weight.path.split("/")[1]: bool((weight.numpy() != old).any())
             for weight, old in zip(model.weights, before, strict=True)}  # fmt: skip
    assert list(moved.values()) == [True, False, True]


def test_with_a_codebook_that_learns_it_raises() -> None:
    with pytest.raises(TypeError, match="must accept keyword argument 'variables', since function uses variables"):
        taped(Learning(), normal(64, DIM))


def test_mended_it_runs_and_the_codebook_gets_nothing_from_it() -> None:
    layer, z = Mended(), normal(64, DIM)
    _, upstream, at_z, at_codebook = taped(layer, z)
    assert (at_z.numpy() == upstream.numpy()).all()
    assert at_codebook is None  # right for the reconstruction, but no codebook loss can pass here either
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((tf.stop_gradient(z) - layer(z)) ** 2)
    assert tape.gradient(loss, layer.codebook) is None


def test_a_codebook_gradient_that_is_given_arrives() -> None:
    layer, z = Given(), normal(64, DIM)
    _, upstream, at_z, at_codebook = taped(layer, z)
    assert (at_z.numpy() == upstream.numpy()).all()
    with tf.GradientTape() as tape:
        looked_up = nearest(z, layer.codebook)
    plain = tape.gradient(looked_up, layer.codebook, output_gradients=upstream)
    np.testing.assert_array_equal(tf.convert_to_tensor(at_codebook), tf.convert_to_tensor(plain))


def test_our_two_spellings_copy_the_gradient_alike() -> None:
    z, codes, upstream = normal(64, DIM), normal(CODES, DIM, seed=1), normal(64, DIM, seed=2)
    ways = (vqkit.keras.straight_through_stop_gradient, vqkit.keras.straight_through_custom_gradient)
    for way in ways:
        with tf.GradientTape() as tape:
            tape.watch([z, codes])
            z_q = way(z, nearest(z, codes))
        at_z, at_codes = tape.gradient(z_q, [z, codes], output_gradients=upstream)
        assert (at_z.numpy() == upstream.numpy()).all()
        assert at_codes is None or not tf.reduce_any(tf.convert_to_tensor(at_codes) != 0)
        np.testing.assert_allclose(z_q, nearest(z, codes), atol=1e-6)
