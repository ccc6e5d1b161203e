"""A training step of an EMA quantizer in PyTorch, ours and others: docs/benchmarks.md.

    python -m benchmarks.quantizer [--rounds N] [--shapes N,K,D ...]

All layers take their steps in turn in one process. Before that each encodes the vectors once, and what it finds is
compared with the definition in float64. Then each takes steps alone, in a process whose memory is looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

import vqkit
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
from benchmarks.onehot_torch import OneHotEMA
from benchmarks.searches import Shape, defined, parse, sample

OURS, THEIRS, ONE_HOT = "ours", "vector-quantize-pytorch", "one-hot"
IDENTITY = "identity"  # no layer: what else a step takes in memory
PEER = "vector_quantize_pytorch"
DECAY, BETA = 0.99, 0.25
IMAGES = 16  # the vectors come as so many images
BARS: dict[Shape, float] = {(16384, 512, 64): 10, (16384, 8192, 32): 25}  # times as fast as THEIRS, at least
MEMORY_BAR = 10.0  # times as much memory as ours, at least
WARM_UP, STEPS = 2, 3


class Layer(NamedTuple):
    """A whole training step, and the indices that the layer as it is now chooses."""

    step: Callable[[], object]
    encode: Callable[[], Tensor]


def data(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, the gradient that comes back for their codes, and codes: standard normal numbers."""
    n, k, d = shape
    generator = torch.Generator().manual_seed(0)
    z, back = (torch.randn(IMAGES, n // IMAGES, d, generator=generator) for _ in range(2))
    return z.requires_grad_(), back, torch.randn(k, d, generator=generator)


def ours(shape: Shape) -> Layer:
    z, back, codes = data(shape)
    start = vqkit.Given(codes.numpy())
    vq = vqkit.VectorQuantizer(shape[2], shape[1], update=vqkit.EMA(DECAY), commitment=BETA, start=start)

    def step() -> None:
        z.grad = None
        z_q, _, losses = vq(z)
        torch.autograd.backward((z_q, losses.total), (back, torch.tensor(1.0)))
        vqkit.step(vq)

    return Layer(step, lambda: vq.encode(z))


def theirs(shape: Shape) -> Layer:
    from vector_quantize_pytorch import VectorQuantize

    z, back, codes = data(shape)
    vq = VectorQuantize(shape[2], shape[1], decay=DECAY, commitment_weight=BETA, rotation_trick=False)
    state = vq.state_dict()
    vq.load_state_dict(state | dict.fromkeys(("_codebook.embed", "_codebook.embed_avg"), codes[None]))
    return Layer(*_in_forward(vq, z, back))


def one_hot(shape: Shape) -> Layer:
    z, back, codes = data(shape)
    return Layer(*_in_forward(OneHotEMA(codes, DECAY, BETA), z, back))


def _in_forward(vq: torch.nn.Module, z: Tensor, back: Tensor) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """Of a layer whose codebook learns in forward."""

    def step() -> None:
        z.grad = None
        z_q, _, loss = vq(z)
        torch.autograd.backward((z_q, loss.sum()), (back, torch.tensor(1.0)))

    @torch.no_grad()
    def encode() -> Tensor:
        vq.eval()
        indices = vq(z)[1]
        vq.train()
        return indices

    return step, encode


def identity(shape: Shape) -> Layer:
    z, back, _ = data(shape)

    def step() -> None:
        z.grad = None
        torch.autograd.backward((z.view_as(z),), (back,))

    return Layer(step, lambda: torch.zeros(z.shape[:-1], dtype=torch.int64))


LAYERS = {OURS: ours, THEIRS: theirs, ONE_HOT: one_hot, IDENTITY: identity}


def contenders() -> list[str]:
    """Those that are installed; ours first."""
    return [name for name in (OURS, THEIRS, ONE_HOT) if name != THEIRS or find_spec(PEER)]


def memory(name: str, shapes: list[Shape]) -> list[float]:
    """MiB of extra memory that steps take, at each shape."""
    found = []
    for shape in shapes:
        step = LAYERS[name](shape).step
        for _ in range(STEPS):
            step()
        found.append(extra_memory(lambda step=step: [step() for _ in range(STEPS)]))
    return found


def table(shape: Shape, rounds: int, extra: dict[str, float]) -> str:
    """The rows of one shape."""
    (n, k, d), names = shape, contenders()
    layers, (z, _, codes), rows_S = {name: LAYERS[name](shape) for name in names}, data(shape), sample(shape)
    indices_S = defined(z.detach().flatten(0, 1)[rows_S], codes)
    wrong = {name: int((layers[name].encode().flatten()[rows_S] != indices_S).sum()) for name in names}
    times = race({name: layers[name].step for name in names}, rounds, WARM_UP)
    lines = [f"**{IMAGES} x {n // IMAGES} vectors, {k:,} codes, {d} dimensions**", ""]
    wrong_of = f"wrong indices, of {len(rows_S):,}"
    lines += heading("a training step", "median, ms", "times ours", "extra memory, MiB", "times ours", wrong_of)
    for name in names:
        bars = (BARS.get(shape), MEMORY_BAR) if name == THEIRS else (None, None)
        slower = beside(ratio(times[name], times[OURS]), bars[0], ".2f")
        larger = beside(extra[name] / extra[OURS], bars[1], ".1f")
        lines.append(row(name, f"{1e3 * median(times[name]):.1f}", slower, f"{extra[name]:.1f}", larger, wrong[name]))
    return "\n".join(lines)


def tables(shapes: list[Shape], rounds: int, arguments: list[str]) -> str:
    alone = {}
    for name in (*contenders(), IDENTITY):
        command = ("benchmarks.quantizer", "--memory-of", name, *arguments)
        alone[name] = in_own_process(*command, environment=GIVE_BACK)
    there = find_spec(PEER) is not None
    machine = (
        f"{processor()}; {torch.get_num_threads()} threads, {rounds} rounds. PyTorch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}){f', {THEIRS} {version(THEIRS)}' if there else ''}."
        f"{'' if there else f' Left out, as not installed: {THEIRS}.'}"
    )
    parts = [machine]
    for i, shape in enumerate(shapes):
        extra = {name: alone[name][i] - alone[IDENTITY][i] for name in contenders()}
        parts.append(table(shape, rounds, extra))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="a training step of an EMA quantizer against others")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", metavar="N,K,D", help="a trial of these shapes, which is only printed")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # for the processes that this one starts
    arguments = parser.parse_args()
    trial = [parse(text) for text in arguments.shapes or ()]
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, trial or list(BARS))))
        return
    text = tables(trial or list(BARS), arguments.rounds, ["--shapes", *arguments.shapes] if trial else []) + "\n"
    if not trial:
        write("benchmarks.quantizer", text)
    print(text)


if __name__ == "__main__":
    main()
