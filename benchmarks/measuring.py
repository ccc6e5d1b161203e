"""What the benchmarks share: a race, a step's peak memory, a process of its own, and the place of a table in the pages.

Nothing here imports a framework: a process of one must not hold another.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
END = "<!-- end -->\n"
PAUSE = 0.01  # seconds, in which the threads of the contender before stop spinning: each brings its own OpenMP
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # memory to the system, at once
Name = TypeVar("Name")


def race(contenders: Mapping[Name, Callable[[], object]], rounds: int, warm_up: int = 0) -> dict[Name, list[float]]:
    """Seconds of each, round by round, in an order drawn anew for each round; the first rounds do not count."""
    names, rng = list(contenders), random.Random(0)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for round_ in range(warm_up + rounds):
        for name in rng.sample(names, len(names)):
            time.sleep(PAUSE)
            began = time.perf_counter()
            contenders[name]()
            if round_ >= warm_up:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(seconds: list[float], of: list[float]) -> float:
    """The median of the ratios of single rounds, in which whatever else the machine does meets both alike."""
    return median(a / b for a, b in zip(seconds, of, strict=True))


def extra_memory(step: Callable[[], object]) -> float:
    """MiB by which the peak of a step exceeds what the process holds before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(entry: str) -> int:
    return int(re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def in_own_process(module: str, *arguments: str, environment: Mapping[str, str]) -> Any:
    """What ``python -m module`` prints last, as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(module: str, tables: str) -> None:
    """Puts the tables of ``python -m module`` into their place in the document."""
    begin = f"<!-- python -m {module} -->\n"
    head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"{DOCUMENT} has no place for the tables, between {begin.strip()} and {END.strip()}.")
    DOCUMENT.write_text(f"{head}{begin}\n{tables}\n{END}{tail}", encoding="utf-8")


def processor() -> str:
    """Its name and its cores."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", information.read_text() if information.exists() else "")
    return f"{found[1].strip() if found else platform.processor()}, {os.cpu_count()} cores ({platform.machine()})"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(first: str, *others: str) -> list[str]:
    """The first two lines of a table, its figures to the right."""
    return [row(first, *others), "|---|" + "--:|" * len(others)]


def beside(figure: float, bar: float | None, form: str, least: bool = True) -> str:
    """The figure with its bar in brackets; bold where it misses the bar, which is the least or the most allowed."""
    if bar is None:
        return f"{figure:{form}}"
    missed = figure < bar if least else figure > bar
    return f"**{figure:{form}}** ({bar:g})" if missed else f"{figure:{form}} ({bar:g})"
