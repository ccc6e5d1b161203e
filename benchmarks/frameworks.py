"""A training step of our quantizer and of the usual one-hot layer in TensorFlow and JAX: docs/benchmarks.md.

    python -m benchmarks.frameworks

Each framework runs in a process of its own, where the layers are compiled and take steps in turn, so that whatever
else the machine does slows all of them alike. Then each layer runs alone, in a process whose memory is looked at.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- python -m benchmarks.frameworks -->\n", "<!-- end -->\n"

BATCH, CODES, DIM = 16 * 1024, 512, 64
BETA, DECAY, EPSILON, RATE = 0.25, 0.99, 1e-5, 0.1
ROUNDS, WARM_UP = 30, 3
FRAMEWORKS = ("tensorflow", "jax")
LAYERS = ("one-hot, EMA", "ours, EMA", "one-hot, gradient", "ours, gradient")
IDENTITY = "identity"  # no layer: what else a step takes in memory
FAR = 1000.0  # standard deviations


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, what they should be, and codes: standard normal numbers in float32."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n, DIM), np.float32) for n in (BATCH, BATCH, CODES))  # type: ignore[return-value]


def times(side: ModuleType) -> dict[str, list[float]]:
    """Seconds of each layer's steps, one after another in each round."""
    steps = {name: side.step(name) for name in LAYERS}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    found: dict[str, list[float]] = {name: [] for name in LAYERS}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - began)
    return found


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


def extra_memory(step) -> float:
    """MiB by which a step's peak exceeds what the process holds between steps."""
    for _ in range(WARM_UP):
        step()
    time.sleep(1)  # a framework frees what a step needed a moment after its result is there
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(entry: str) -> int:
    return int(re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def measured(framework: str, what: str) -> dict:
    """What a process of its own found; it gives memory that it no longer uses back at once."""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if what in _ALONE else {}
    command = [sys.executable, "-m", "benchmarks.frameworks", framework, what]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


_ALONE = (*LAYERS, IDENTITY)


def table(framework: str) -> str:
    """The rows of one framework, and what was checked, in Markdown."""
    race = measured(framework, "race")
    memory = {name: measured(framework, name)["memory"] for name in _ALONE}
    rows = [f"**{race['versions']}**", "", "| a training step | median, ms | times ours | extra memory, MiB |"]
    rows.append("|---|--:|--:|--:|")
    for name in LAYERS:
        ours = f"ours, {name.partition(', ')[2]}"
        ratios = sorted(a / b for a, b in zip(race["times"][name], race["times"][ours], strict=True))
        middle, low, high = statistics.median(ratios), ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        spread, milliseconds = f"{middle:.2f} ({low:.2f} to {high:.2f})", 1000 * statistics.median(race["times"][name])
        rows.append(f"| {name} | {milliseconds:.1f} | {spread} | {memory[name] - memory[IDENTITY]:.1f} |")
    near, far = race["wrong"]["near"], race["wrong"]["far"]
    rows += ["", f"Of {BATCH:,} indices, wrong: ours {near['ours']}, one-hot {near['one-hot']}; "
             f"with vectors and codes moved by {FAR:g}: ours {far['ours']}, one-hot {far['one-hot']}.", ""]  # fmt: skip
    return "\n".join(rows)


def main() -> None:
    if len(sys.argv) == 3:
        framework, what = sys.argv[1:]
        side = import_module(f"benchmarks.onehot_{framework}")
        if what == "race":
            found = {"versions": side.versions(), "times": times(side), "wrong": wrong(side)}
        else:
            found = {"memory": extra_memory(side.step(what))}
        print(json.dumps(found))
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{DOCUMENT} has no place for the tables, between {BEGIN.strip()} and {END.strip()}.")
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}."
    tables = "\n".join(table(framework) for framework in FRAMEWORKS)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{machine}\n\n{tables}\n{END}{tail}", encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
