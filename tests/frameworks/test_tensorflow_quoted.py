"""Lines that an explanation of VQ-VAE in TensorFlow quotes alone: as printed they fail; corrected they are right."""

from __future__ import annotations

import ast
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.frameworks.cases import normal

CODES, DIM = 16, 4


class Quoted(NamedTuple):
    """What is printed and the error that it raises, if any; what works, and which value its last statement names."""

    printed: str
    error: tuple[type[Exception], str] | None
    corrected: str
    value: str

    def name(self) -> str:
        (target,) = ast.parse(self.corrected).body[-1].targets
        return target.id


DISTANCES = """dist = (
    tf.reduce_sum(z_flat**2, axis=1, keepdims=True) # [BHW, 1]
    -2 * tf.matmul(z_flat, e, transpose_b=True) # [BHW, K]
    + tf.reduce_sum(e**2, axis=1) # [K]
)"""
LINES = {
    "estimator": Quoted(
        "z_q = z_flat + stop_gradient(e_q - z_flat)",
        (NameError, "'stop_gradient' is not defined"),
        "z_q = z_flat + tf.stop_gradient(e_q - z_flat)",
        "codes",
    ),
    "codebook loss": Quoted(
        "codebook_loss = tf.reduce_mean(tf.square(stop_gradient(z_flat) - e_q))",
        (NameError, "'stop_gradient' is not defined"),
        "codebook_loss = tf.reduce_mean(tf.square(tf.stop_gradient(z_flat) - e_q))",
        "error",
    ),
    "codebook loss as a norm": Quoted(
        "codebook_loss = || stop_gradient(z_flat) - e_q ||²",
        (SyntaxError, "invalid"),
        "codebook_loss = tf.reduce_mean(tf.norm(tf.stop_gradient(z_flat) - e_q, axis=1) ** 2) / D",
        "error",
    ),
    "search": Quoted(
        "dist = ...\nk = argmin(dist)\ne_q = gather(e, k)",
        (NameError, "'argmin' is not defined"),
        f"{DISTANCES}\nk = tf.argmin(dist, axis=1)\ne_q = tf.gather(e, k)",
        "codes",
    ),
    "distances": Quoted(DISTANCES, None, DISTANCES, "distances"),
    "map": Quoted(
        "tf.reshape(..., [B, H, W, C])",
        (ValueError, "Attempt to convert a value"),
        "z_q = tf.reshape(e_q, [B, H, W, C])",
        "map",
    ),
    "gradient": Quoted(
        "loss = some_fn(e_q)\ngrads = tape.gradient(loss, e)",
        (NameError, "'some_fn' is not defined"),
        "loss = tf.reduce_sum(tf.square(e_q))\ngrads = tf.convert_to_tensor(tape.gradient(loss, e))",
        "gradient",
    ),
    "slices": Quoted(
        "IndexedSlices(values=grads_at_k, indices=k, dense_shape=[K, D])",
        (NameError, "'IndexedSlices' is not defined"),
        "grads = tf.convert_to_tensor(tf.IndexedSlices(values=2 * e_q, indices=k, dense_shape=[K, D]))",
        "gradient",
    ),
}


def values(z: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """By the definitions; ``gradient`` is that of the sum of the squares of what was looked up."""
    distances = ((z[:, None] - codes) ** 2).sum(2)
    chosen = distances.argmin(1)
    gradient = np.zeros_like(codes)
    np.add.at(gradient, chosen, 2 * codes[chosen])
    return {
        **{"distances": distances, "chosen": chosen, "codes": codes[chosen], "gradient": gradient},
        **{"error": ((z - codes[chosen]) ** 2).mean(), "map": codes[chosen].reshape(2, 4, 4, DIM)},
    }


@pytest.mark.parametrize("quoted", LINES)
def test_as_printed_and_corrected(quoted: str) -> None:
    line = LINES[quoted]
    z, codes = normal(32, DIM, dtype="float64"), normal(CODES, DIM, seed=1, dtype="float64")
    expected = values(z, codes)
    names = {"tf": tf, "e": tf.Variable(codes, dtype=tf.float32), "z_flat": tf.constant(z, tf.float32)}
    names |= {"k": expected["chosen"], "B": 2, "H": 4, "W": 4, "C": DIM, "K": CODES, "D": DIM}
    with tf.GradientTape() as tape:
        names |= {"tape": tape, "e_q": tf.gather(names["e"], names["k"])}
        if line.error is not None:
            error, message = line.error
            with pytest.raises(error, match=message):
                exec(line.printed, dict(names))
        exec(line.corrected, names)
    np.testing.assert_allclose(names[line.name()], expected[line.value], rtol=1e-4, atol=1e-5)


def test_argmin_without_its_axis_finds_a_vector_for_each_code() -> None:
    """What is quoted as ``k = argmin(dist)`` is of the wrong length, and no index of a code."""
    z, codes = normal(32, DIM, dtype="float64"), normal(CODES, DIM, seed=1, dtype="float64")
    found = tf.argmin(tf.constant(values(z, codes)["distances"])).numpy()
    assert found.tolist() == [int(((z - code) ** 2).sum(1).argmin()) for code in codes]
    assert found.max() >= CODES
