"""``vqkit.keras.trace``: its numbers against gradients of arithmetic done by hand, its text, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import vqkit
import vqkit.keras
from vqkit.keras.trace import Route

WHOLE = {"persistent": True}


def small():
    """Two variables and losses whose gradients are known: 3 and 4 at a, (0, 6) at the rows of b."""
    a, b = tf.Variable([0.0, 0.0]), tf.Variable([[1.0], [2.0], [3.0]])
    with tf.GradientTape(**WHOLE) as tape:
        losses = {
            "flat": 3 * a[0] + 4 * a[1],
            "steep": 4 * a[0] - 3 * a[1] + tf.reduce_sum(tf.gather(b, [1, 1])) * 3,
            "nothing": tf.reduce_sum(a) * 0 + tf.reduce_sum(tf.stop_gradient(b)),
            "against": -a[0],
        }
    return losses, {"a": [a], "b": [b]}, tape


def test_norms_kinds_and_cosines_are_those_of_arithmetic() -> None:
    table = vqkit.keras.trace(*small())
    assert table.routes == {
        "flat": {"a": Route(5.0, "flows"), "b": Route(0.0, "no path")},
        # Row 1 of b is looked up twice, 3 each: summed 6, while the entries of the IndexedSlices have norm 4.24.
        "steep": {"a": Route(5.0, "flows"), "b": Route(6.0, "flows")},
        "nothing": {"a": Route(0.0, "zero"), "b": Route(0.0, "no path")},
        "against": {"a": Route(1.0, "flows"), "b": Route(0.0, "no path")},
    }
    assert set(table.cosines) == {"a"}
    assert table.cosines["a"] == pytest.approx(
        {("flat", "steep"): 0.0, ("flat", "against"): -0.6, ("steep", "against"): -0.8}
    )


def test_it_prints_what_it_returns_as_vqkits_other_trace_does(capsys: pytest.CaptureFixture[str]) -> None:
    table = vqkit.keras.trace(*small())
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
    assert printed.splitlines() == [
        "gradient norm  a            b",
        "flat           5            no path",
        "steep          5            6",
        "nothing        0 on a path  no path",
        "against        1            no path",
        "cosine at a: steep and against -0.800",
        "cosine at a: flat and against -0.600",
        "cosine at a: flat and steep +0.000",
    ]


def test_a_wide_table_is_turned() -> None:
    a = tf.Variable(1.0)
    with tf.GradientTape(**WHOLE) as tape:
        loss = 2 * a
    text = str(vqkit.keras.trace({"loss": loss}, {f"a group with a long name {i}": [a] for i in range(4)}, tape))
    assert text.splitlines()[1] == "a group with a long name 0  2"


def test_gradients_that_are_not_finite_and_half_precision() -> None:
    a, half = tf.Variable(0.0), tf.Variable(2.0, dtype=tf.float16)
    with tf.GradientTape(**WHOLE) as tape:
        losses = {"root": tf.sqrt(a), "large": tf.cast(half * 30000, tf.float32)}  # 30000**2 is no float16
    table = vqkit.keras.trace(losses, {"a": [a], "half": [half]}, tape)
    assert table.routes["root"]["a"].kind == "not finite"
    assert table.routes["large"]["half"] == Route(30000.0, "flows")
    assert table.cosines == {}


@pytest.mark.parametrize("update", [vqkit.Gradient(), vqkit.EMA()], ids=repr)
def test_which_loss_trains_which_part_of_a_vqvae(update) -> None:
    """By layers, whose variables are left as they were, and the tape can be asked again."""
    keras.utils.set_random_seed(0)
    encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(6)
    vq = vqkit.keras.VectorQuantizer(8, 4, update=update, seed=0)
    x = tf.random.normal((32, 6), seed=1)
    decoder(vq(encoder(x)))
    with tf.GradientTape(**WHOLE) as tape:
        z_q, _, losses = vq.quantized(encoder(x))
        named = {"reconstruction": tf.reduce_mean((decoder(z_q) - x) ** 2), "commitment": losses.commitment}
        if update.by_gradient:
            named["codebook"] = losses.codebook
    layers = {"encoder": encoder, "codebook": vq, "decoder": decoder}
    before = [w.numpy() for layer in layers.values() for w in layer.weights]
    table = vqkit.keras.trace(named, layers, tape)
    assert all((w.numpy() == old).all() for w, old in zip(
        [w for layer in layers.values() for w in layer.weights], before, strict=True))  # fmt: skip
    flows = {name: [g for g, route in row.items() if route.kind == "flows"] for name, row in table.routes.items()}
    expected = {"reconstruction": ["encoder", "decoder"], "commitment": ["encoder"], "codebook": ["codebook"]}
    assert flows == {name: expected[name] for name in named}
    at_codebook = {row["codebook"].kind for name, row in table.routes.items() if name != "codebook"}
    assert at_codebook <= ({"zero", "no path"} if update.by_gradient else {"no parameters"})
    asked = [tf.convert_to_tensor(g) for g in tape.gradient(named["commitment"], encoder.trainable_variables)]
    norm = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in asked))
    assert table.routes["commitment"]["encoder"].norm == pytest.approx(norm, rel=1e-5)


def test_what_it_refuses_says_what_to_do() -> None:
    a = tf.Variable([1.0, 2.0])
    with tf.GradientTape(**WHOLE) as tape:
        loss, several = tf.reduce_sum(a), a * 2
        unrelated = tf.constant(3.0)
    groups = {"a": [a]}
    with tf.GradientTape() as once:
        consumed = tf.reduce_sum(a)
    unbuilt = keras.layers.Dense(3, name="dense")

    @tf.function
    def compiled():
        with tf.GradientTape(**WHOLE) as inner:
            vqkit.keras.trace({"loss": tf.reduce_sum(a)}, groups, inner)

    for call, message in [
        (lambda: vqkit.keras.trace({"loss": consumed}, groups, once), r"tape is not persistent: .*persistent=True\)"),
        (
            lambda: vqkit.keras.trace({"loss": loss}, groups, None),
            r"tape is None; it must be the tf\.GradientTape\(persistent=True\) that recorded the losses",
        ),
        (lambda: vqkit.keras.trace({"l": several}, groups, tape), r"losses\['l'\] is a EagerTensor of shape \(2,\)"),
        (lambda: vqkit.keras.trace({"l": 3.0}, groups, tape), r"losses\['l'\] is a float of shape \(\); it must be"),
        (lambda: vqkit.keras.trace({"l": unrelated}, groups, tape), r"losses\['l'\] depends on nothing in a: compute"),
        (lambda: vqkit.keras.trace({"loss": loss}, {}, tape), r"groups is \{\}; it must name at least one"),
        (lambda: vqkit.keras.trace(loss, groups, tape), r"losses is <tf\.Tensor.*; it must name at least one"),
        (lambda: vqkit.keras.trace({"loss": loss}, {"none": []}, tape), r"groups\['none'\] is \[\]; it must be a list"),
        (lambda: vqkit.keras.trace({"loss": loss}, {"a": a}, tape), r"groups\['a'\] is <tf\.Variable"),
        (
            lambda: vqkit.keras.trace({"loss": loss}, {"d": unbuilt}, tape),
            r"groups\['d'\] is <Dense name=dense, built=F",
        ),
        (compiled, r"losses\['loss'\] is a SymbolicTensor .* outside tf\.function"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
