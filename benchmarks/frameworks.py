"""A training step of our quantizer and of the usual one-hot layer in TensorFlow and JAX: docs/benchmarks.md.

    python -m benchmarks.frameworks

Each framework runs in a process of its own, where the layers are compiled and take steps in turn, so that whatever
else the machine does slows all of them alike. Then each layer runs alone, in a process whose memory is looked at.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np

from benchmarks.measuring import GIVE_BACK, extra_memory, in_own_process, race, write

BATCH, CODES, DIM = 16 * 1024, 512, 64
BETA, DECAY, EPSILON, RATE = 0.25, 0.99, 1e-5, 0.1
ROUNDS, WARM_UP = 30, 3
FRAMEWORKS = ("tensorflow", "jax")
LAYERS = ("one-hot, EMA", "ours, EMA", "one-hot, gradient", "ours, gradient")
RACE = "race"
IDENTITY = "identity"  # no layer: what else a step takes in memory
FAR = 1000.0  # standard deviations


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, what they should be, and codes: standard normal numbers in float32."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n, DIM), np.float32) for n in (BATCH, BATCH, CODES))  # type: ignore[return-value]


def times(side: ModuleType) -> dict[str, list[float]]:
    """Seconds of each layer's steps, in each round."""
    return race({name: side.step(name) for name in LAYERS}, ROUNDS, WARM_UP)


def wrong(side: ModuleType) -> dict[str, dict[str, int]]:
    """How many indices are not those of the definition in float64, at the origin and far from it."""
    from vqkit import reference

    z, _, codes = data()
    counts: dict[str, dict[str, int]] = {}
    for place, offset in (("near", 0.0), ("far", FAR)):
        moved, around = z + np.float32(offset), codes + np.float32(offset)
        parts = np.array_split(moved, 16)
        defined = np.concatenate([reference.nearest(part, around) for part in parts])
        found = side.indices(moved, around)
        counts[place] = {name: int((indices != defined).sum()) for name, indices in found.items()}
    return counts


def measured(framework: str, what: str) -> dict:
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"} | (GIVE_BACK if what != RACE else {})
    return in_own_process("benchmarks.frameworks", framework, what, environment=environment)


def memory(step: Callable[[], object]) -> float:
    """MiB of extra memory that three steps take."""
    for _ in range(WARM_UP):
        step()
    time.sleep(1)  # a framework frees what a step needed a moment after its result is there
    return extra_memory(lambda: [step() for _ in range(3)])


def table(framework: str) -> str:
    """The rows of one framework, and what was checked, in Markdown."""
    raced = measured(framework, RACE)
    extra = {name: measured(framework, name)["memory"] for name in (*LAYERS, IDENTITY)}
    rows = [f"**{raced['versions']}**", "", "| a training step | median, ms | times ours | extra memory, MiB |"]
    rows.append("|---|--:|--:|--:|")
    for name in LAYERS:
        ours = f"ours, {name.partition(', ')[2]}"
        ratios = sorted(a / b for a, b in zip(raced["times"][name], raced["times"][ours], strict=True))
        middle, low, high = statistics.median(ratios), ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        spread, milliseconds = f"{middle:.2f} ({low:.2f} to {high:.2f})", 1000 * statistics.median(raced["times"][name])
        rows.append(f"| {name} | {milliseconds:.1f} | {spread} | {extra[name] - extra[IDENTITY]:.1f} |")
    near, far = raced["wrong"]["near"], raced["wrong"]["far"]
    rows += ["", f"Of {BATCH:,} indices, wrong: ours {near['ours']}, one-hot {near['one-hot']}; "
             f"with vectors and codes moved by {FAR:g}: ours {far['ours']}, one-hot {far['one-hot']}.", ""]  # fmt: skip
    return "\n".join(rows)


def main() -> None:
    if len(sys.argv) == 3:
        framework, what = sys.argv[1:]
        side = import_module(f"benchmarks.onehot_{framework}")
        if what == RACE:
            found = {"versions": side.versions(), "times": times(side), "wrong": wrong(side)}
        else:
            found = {"memory": memory(side.step(what))}
        print(json.dumps(found))
        return
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}."
    tables = "\n".join(table(framework) for framework in FRAMEWORKS)
    write("benchmarks.frameworks", f"{machine}\n\n{tables}")
    print(tables)


if __name__ == "__main__":
    main()
