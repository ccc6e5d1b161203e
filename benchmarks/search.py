"""The nearest-code search against what else one can call for it: docs/benchmarks.md.

    python -m benchmarks.search [--rounds N] [--run DIR [--data PATH]] [--shapes N,K,D ...]

All contenders take turns in one process, with a matrix product of PyTorch among them as the machine's own rate. Before
the race each searches once, and what it finds is compared with the definition in float64, written here anew. Then each
searches alone, in a process whose memory is looked at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.measuring import (
    GIVE_BACK,
    beside,
    extra_memory,
    heading,
    in_own_process,
    processor,
    race,
    ratio,
    row,
    write,
)
from benchmarks.searches import (
    BARS,
    CDIST,
    EXPANDED,
    HARD_BAR,
    LARGE,
    LARGE_BAR,
    NEAR,
    OURS,
    PEERS,
    PRODUCT,
    TWICE,
    Case,
    all_cases,
    contenders,
    defined,
    in_pieces,
    parse,
    sample,
    save_latents,
)
from vqkit.functional import native

MATRIX = 2048
MANY = 2**28  # distances, above which half the rounds do: each takes ten seconds and more


@dataclass
class Measured:
    """Of one case: seconds in each round and wrong indices of each contender, and how many were checked."""

    times: dict[str, list[float]]
    wrong: dict[str, int]
    checked: int


def measure(cases: list[Case], rounds: int) -> dict[Case, Measured]:
    """Cases of one shape race together."""
    searches, found = contenders(), {}
    matrix = torch.randn(MATRIX, MATRIX)
    for shape, group in groupby(cases, key=lambda case: case.shape):
        together, rows_S = list(group), sample(shape)
        runs: dict[tuple[Case | None, str], Callable[[], object]] = {(None, PRODUCT): lambda: matrix @ matrix}
        wrong: dict[Case, dict[str, int]] = {}
        for case in together:
            z, codes = case.data()
            indices_S = defined(z[rows_S], codes)
            wrong[case] = {name: int((s(z, codes)[rows_S] != indices_S).sum()) for name, s in searches.items()}
            for name, search in searches.items():
                runs[case, name] = lambda search=search, z=z, codes=codes: search(z, codes)
        times = race(runs, rounds if shape[0] * shape[1] <= MANY else -(-rounds // 2))
        for case in together:
            own = {name: times[case, name] for name in searches} | {PRODUCT: times[None, PRODUCT]}
            found[case] = Measured(own, wrong[case], len(rows_S))
    return found


def memory(name: str, cases: list[Case]) -> dict[str, float]:
    """MiB of extra memory that one search takes of each case."""
    search, found = contenders()[name], {}
    search(torch.randn(512, 8), torch.randn(64, 8))  # what it needs once and for all
    for case in cases:
        z, codes = case.data()
        found[case.name] = extra_memory(lambda z=z, codes=codes: search(z, codes))
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def speed_table(measured: dict[Case, Measured]) -> str:
    peers = [name for name in contenders() if name != OURS]
    lines = heading("N, K, D", "ours, ms", "GFLOP/s", "of the product's", *(f"{name}, times ours" for name in peers))
    for case, found in measured.items():
        times, bars, (n, k, d) = found.times, case.bars, case.shape
        rate = 2 * n * k * d / median(times[OURS]) / 1e9
        share = n * k * d / MATRIX**3 * ratio(times[PRODUCT], times[OURS])
        ratios = [beside(ratio(times[name], times[OURS]), bars.get(name), ".2f") for name in peers]
        shared = beside(share, bars.get(PRODUCT), ".2f")
        lines.append(row(case.name, f"{1e3 * median(times[OURS]):.1f}", f"{rate:.0f}", shared, *ratios))
    return "\n".join(lines)


def hard_table(measured: dict[Case, Measured]) -> str:
    """The hard data beside random data of their shape."""
    lines = heading("hard data", "ours, ms", "times random data")
    for case, found in measured.items():
        if case.kind in (TWICE, NEAR):
            usual = measured[next(other for other in measured if other.shape == case.shape)]
            slower = beside(ratio(found.times[OURS], usual.times[OURS]), HARD_BAR, ".2f", least=False)
            lines.append(row(case.name, f"{1e3 * median(found.times[OURS]):.1f}", slower))
    return "\n".join(lines)


def median_table(measured: dict[Case, Measured]) -> str:
    names = [*contenders(), PRODUCT]
    lines = heading("median, ms", *names)
    for case, found in measured.items():
        lines.append(row(case.name, *(f"{1e3 * median(found.times[name]):.1f}" for name in names)))
    return "\n".join(lines)


def wrong_table(measured: dict[Case, Measured]) -> str:
    names = list(contenders())
    lines = heading("wrong indices", "of", *names)
    for case, found in measured.items():
        lines.append(row(case.name, f"{found.checked:,}", *(f"{found.wrong[name]:,}" for name in names)))
    return "\n".join(lines)


def memory_table(cases: list[Case], large: list[Case], arguments: list[str]) -> str:
    names, extra = list(contenders()), {}
    for name in names:
        command = ("benchmarks.search", "--memory-of", name, *arguments)
        extra[name] = in_own_process(*command, environment=GIVE_BACK)
    lines = heading("extra memory, MiB", *names)
    for case in cases:
        cells = {name: f"{extra[name][case.name]:.1f}" for name in names}
        if rows := in_pieces(case.shape):
            cells |= {name: f"{cells[name]}, by {rows} rows" for name in (CDIST, EXPANDED)}
        lines.append(row(case.name, *cells.values()))
    for case in large:
        own = beside(extra[OURS][case.name], LARGE_BAR, ".1f", least=False)
        lines.append(row(case.name, own, *"-" * (len(names) - 1)))
    return "\n".join(lines)


def machine(rounds: int, measured: dict[Case, Measured]) -> str:
    """What ran where, and what was left out."""
    times = [2e-9 * MATRIX**3 / t for found in measured.values() for t in found.times[PRODUCT]]
    low, middle, high = quantiles(times, n=4)
    peers = [f"{dist} {version(dist)}" for module, dist in PEERS.values() if find_spec(module)]
    absent = [dist for module, dist in PEERS.values() if not find_spec(module)]
    torch_ = f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
    left_out = f" Left out, as not installed: {', '.join(absent)}." if absent else ""
    return (
        f"{processor()}; {torch.get_num_threads()} threads, {rounds} rounds. "
        f"{', '.join([torch_, *peers])}; our search "
        f"runs {native.instructions() or 'in PyTorch: the C++ library is not built'}. The {MATRIX} x {MATRIX} product "
        f"reaches {middle:.0f} GFLOP/s (quartiles {low:.0f} to {high:.0f}).{left_out}"
    )


def tables(cases: list[Case], rounds: int) -> str:
    measured = measure(cases, rounds)
    parts = [machine(rounds, measured), speed_table(measured), hard_table(measured), median_table(measured)]
    return "\n\n".join([*parts, wrong_table(measured)])


def main() -> None:
    parser = argparse.ArgumentParser(description="the search for the nearest codes against others")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--run", type=Path, metavar="DIR", help="also the latents of this run, and its codebook")
    parser.add_argument("--data", type=Path, metavar="PATH", help="the images for --run; else those it was trained on")
    parser.add_argument("--shapes", nargs="+", metavar="N,K,D", help="a trial of these shapes, which is only printed")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # for the processes that this one starts
    parser.add_argument("--latents", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    trial = [parse(text) for text in arguments.shapes or ()]
    shapes, large = trial or list(BARS), [] if trial else [Case(LARGE)]
    if arguments.memory_of:
        cases = all_cases(shapes, arguments.latents) + (large if arguments.memory_of == OURS else [])
        print(json.dumps(memory(arguments.memory_of, cases)))
        return
    with tempfile.TemporaryDirectory() as directory:
        latents = f"{directory}/latents.safetensors" if arguments.run else ""
        if arguments.run:
            save_latents(arguments.run, arguments.data, latents)
        cases = all_cases(shapes, latents)
        passed_on = ["--latents", latents, *(["--shapes", *arguments.shapes] if trial else [])]
        text = f"{tables(cases, arguments.rounds)}\n\n{memory_table(cases, large, passed_on)}\n"
    if not trial:
        write("benchmarks.search", text)
    print(text)


if __name__ == "__main__":
    main()
