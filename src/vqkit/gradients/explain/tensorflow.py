"""What TensorFlow does, measured where it is installed and recorded in ``tensorflow.json`` for everybody else.

``python -m vqkit.gradients.explain.tensorflow`` prints it, with ``--record`` writes the file. No PyTorch is imported
here: it and TensorFlow in one process contend for threads, so ``measuring`` asks another process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("tensorflow.json")
LIMIT = 90.0  # seconds; importing TensorFlow takes 5 to 20, the rest 3

# The small experiments that are run in PyTorch (``rows.py``) and here.
SIZE, LOOKED_UP, RATE = (8, 4), [1, 3, 3, 7], 0.01
START = [[0.5, -1.0, 2.0, 0.25], [-0.5, 1.5, 0.75, -2.0], [1.25, -0.25, -1.5, 0.1]]
IDLE = [[0, 1], *[[1]] * 100]  # what each step looks up: row 0 in the first alone, row 2 never
Rows = Sequence[Sequence[float]]


def idle_rows(tables: Sequence[Rows]) -> dict[str, float]:
    """The largest movement in row 2, never looked up, and in row 0 one step and 100 after its only look-up."""
    spans = {
        "never": (2, tables[0], tables[-1]),
        "next": (0, tables[1], tables[2]),
        "later": (0, tables[1], tables[-1]),
    }
    return {
        name: max(abs(a - b) for a, b in zip(before[row], after[row], strict=True))
        for name, (row, before, after) in spans.items()
    }


@contextmanager
def measuring(limit: float = LIMIT) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts measuring; what it gives waits for the result, at most ``limit`` seconds, and else takes the record.

    The result is ``{source, version, date, facts}``; its source says which it is, and why.
    """
    if find_spec("tensorflow") is None:
        yield lambda: _recorded("TensorFlow is not installed")
        return
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield lambda: _result(process, limit)
        finally:
            process.kill()


def _result(process: subprocess.Popen[str], limit: float) -> dict[str, Any]:
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return _recorded(f"TensorFlow took more than {limit:g} s")
    if process.returncode:
        return _recorded(f"measuring it failed: {(errors.strip() or 'no message').splitlines()[-1]}")
    return {"source": "measured when this page was made", **json.loads(out.splitlines()[-1])}


def _recorded(reason: str) -> dict[str, Any]:
    return {"source": f"recorded earlier; {reason}", **json.loads(RECORD.read_text(encoding="utf-8"))}


def measure() -> dict[str, Any]:
    """Imports TensorFlow and measures: ``{version, date, facts}``, plain JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = import_module("tensorflow")
    e, x, ramp = (
        tf.Variable(tf.reshape(tf.range(32.0), SIZE)),
        tf.Variable([1.1, 2.1]),
        tf.reshape(tf.range(32.0), SIZE),
    )
    z = tf.Variable(16 + 15 * tf.sin(ramp))

    def distances(codebook: Any = e) -> Any:
        crossed = tf.matmul(z, codebook, transpose_b=True)
        return tf.reduce_sum(z**2, 1, keepdims=True) - 2 * crossed + tf.reduce_sum(codebook**2, 1)

    def gradient(loss: Callable[[], Any], of: Any = e) -> Any:
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, of)

    def quantized(inputs: Any, codebook: Any) -> Any:
        return tf.gather(codebook, tf.argmin(tf.reduce_sum((inputs[:, None] - codebook) ** 2, 2), axis=1))

    class Layer(tf.keras.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, learns: bool) -> None:
            super().__init__()
            self.codebook = self.add_weight(shape=SIZE, initializer="random_normal", trainable=learns)

        @tf.custom_gradient
        def call(self, inputs: Any) -> Any:
            return quantized(inputs, self.codebook), lambda dy: dy

    ways: dict[str, Callable[[Any], Any]] = {
        "stop": lambda z: z + tf.stop_gradient(quantized(z, ramp) - z),
        "custom": tf.custom_gradient(lambda z: (quantized(z, ramp), lambda dy: dy)),
        "slip": lambda z: z - tf.stop_gradient(quantized(z, ramp) - z),
        "call": Layer(learns=False),
    }
    # Of a loss whose gradient at z_q is the ramp, whatever z_q is.
    got = {name: gradient(lambda way=way: tf.reduce_sum(way(z) * ramp), z) for name, way in ways.items()}  # type: ignore[misc]
    outside, k = tf.gather(e, LOOKED_UP), tf.constant(LOOKED_UP)
    none = gradient(lambda: tf.reduce_sum(tf.square(outside)))
    unbuilt, learning = tf.keras.layers.Embedding(*SIZE), Layer(learns=True)
    optimizers = {
        "SGD": tf.keras.optimizers.SGD(RATE),
        "momentum": tf.keras.optimizers.SGD(RATE, momentum=0.9),
        "Adam": tf.keras.optimizers.Adam(RATE),
        "AdamW": tf.keras.optimizers.AdamW(RATE, weight_decay=0.01),
    }
    facts = {
        "rounding": {
            "plain": _held(gradient(lambda: tf.reduce_sum(tf.round(2 * x)), x)),
            "through": _held(gradient(lambda: tf.reduce_sum(2 * x + tf.stop_gradient(tf.round(2 * x) - 2 * x)), x)),
        },
        "gather": _held(gradient(lambda: tf.reduce_sum(tf.gather(e, k) ** 2))),
        "dense_use": _held(gradient(lambda: tf.reduce_sum(tf.gather(e, k) ** 2) + tf.reduce_sum(e**2))),
        "argmin_use": _held(gradient(lambda: tf.reduce_sum((z - tf.gather(e, tf.argmin(distances(), 1))) ** 2))),
        "outside": {**_held(none), "error": _error(lambda: none.indices)},
        "assigned": _error(lambda: compile("codebook loss = 0", "snippet", "exec")),
        "applied": _error(
            lambda: eval("optimizer.apply_gradients(zip([grad], [embedding]))", {"optimizer": optimizers["SGD"]})
        ),
        "weights": _error(lambda: unbuilt.weights[0]),
        "gradient_off": {name: float(tf.reduce_max(abs(g - ramp))) for name, g in got.items()},
        "slip": float(tf.reduce_max(abs(ways["slip"](z) - quantized(z, ramp)))),
        "call_that_learns": _error(lambda: gradient(lambda: learning(z), z)),
        "optimizers": {name: idle_rows(_over_time(tf, optimizer)) for name, optimizer in optimizers.items()},
    }
    return {"version": tf.__version__, "date": date.today().isoformat(), "facts": facts}


def _held(gradient: Any) -> dict[str, Any]:
    """The type of a gradient, and which rows it has an entry for: of IndexedSlices one per look-up."""
    if gradient is None:
        return {"type": "None", "entries": []}
    if type(gradient).__name__ == "IndexedSlices":
        return {"type": "IndexedSlices", "entries": gradient.indices.numpy().tolist()}
    return {"type": "dense", "entries": list(range(len(gradient))), "largest": float(abs(gradient.numpy()).max())}


def _error(call: Callable[[], Any]) -> str:
    """What a call raises: its type, and the line that says why."""
    try:
        return f"no error, but {call()!r}"
    except Exception as error:  # whatever it is, it is what is asked for
        lines = re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()
        why = next(line for line in lines if line.strip() and not line.startswith("Exception encountered"))
        return f"{type(error).__name__}: {why.partition(': [')[0]}"


def _over_time(tf: Any, optimizer: Any) -> list[Rows]:
    e = tf.Variable(START)
    tables = [e.numpy().tolist()]
    for k in IDLE:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.gather(e, k) - 1.0) ** 2)
        optimizer.apply_gradients([(tape.gradient(loss, e), e)])
        tables.append(e.numpy().tolist())
    return tables


if __name__ == "__main__":
    found = measure()
    print(json.dumps(found))
    if "--record" in sys.argv:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
