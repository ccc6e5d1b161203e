"""What the layer costs beyond the PyTorch calls that no vector quantizer can do without.

    python -m benchmarks.overhead [--threads N] [--rounds N]

With 64 vectors the arithmetic takes microseconds, so what counts is how many small operations are launched, and what
Python does between them. The floor is one distance (``cdist``; or ``addmm`` with ``|e|^2``, which changes with every
step), ``argmin``, a gather and two losses, with one backward pass through them and no Python in between: it has no
straight-through estimator, no check of shapes, and its codes are wrong where float32 rounds. The bar is twice that.

All contenders run in turn in one process, so that whatever else the machine does meets each alike; a row is the median
over all rounds, of processor time where one thread works (what other programs take does not count) and of time on the
clock where several do. The third row is a layer as people write it, for scale.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import torch
import torch.nn.functional as F
from torch import Tensor

import vqkit

VECTORS, CODES, DIM = 64, 512, 64
BAR = 2.0
WARM_UP = 50


def contenders() -> dict[str, Callable[[], None]]:
    """Name to one forward and backward pass, all on the same vectors and codes."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(VECTORS, DIM, generator=generator, requires_grad=True)
    codes = torch.randn(CODES, DIM, generator=generator)
    codebook = codes.clone().requires_grad_()
    from_decoder = torch.randn(VECTORS, DIM, generator=generator)
    one, beta = torch.tensor(1.0), torch.tensor(0.25)

    def floor(scores: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                indices = scores().argmin(1)
            q = codebook.index_select(0, indices)
            torch.autograd.backward((F.mse_loss(q, z.detach()), F.mse_loss(z, q.detach())), (one, beta))
            z.grad = codebook.grad = None

        return run

    def plain() -> None:
        with torch.no_grad():
            distances = z.square().sum(1, keepdim=True) - 2 * z @ codebook.T + codebook.square().sum(1)
            indices = distances.argmin(1)
        q = F.embedding(indices, codebook)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        z_q = z + (q - z).detach()
        torch.autograd.backward((z_q, loss), (from_decoder, one))
        z.grad = codebook.grad = None

    def layer(update: vqkit.Gradient | vqkit.EMA, start: vqkit.Given | vqkit.Uniform) -> Callable[[], None]:
        vq = vqkit.VectorQuantizer(DIM, CODES, update=update, start=start, seed=0)

        def run() -> None:
            z_q, _, losses = vq(z)
            torch.autograd.backward((z_q, losses.total), (from_decoder, one))
            z.grad = vq.codebook.grad = vq.collector.statistics.grad = None
            vq.collector.backwards = 0  # or it would warn that nobody steps

        return run

    return {
        "floor with `cdist`": floor(lambda: torch.cdist(z, codebook)),
        "floor with `addmm`": floor(
            lambda: torch.addmm(torch.linalg.vecdot(codebook, codebook), z, codebook.T, alpha=-2)
        ),
        "a plain layer": plain,
        "`VectorQuantizer`, codes ~ N(0, 1)": layer(vqkit.Gradient(), vqkit.Given(codes)),
        "`VectorQuantizer`, default start": layer(vqkit.Gradient(), vqkit.Uniform()),
        "`VectorQuantizer(update=EMA())`": layer(vqkit.EMA(), vqkit.Given(codes)),
    }


def medians(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds for one pass of each."""
    clock = process_time if torch.get_num_threads() == 1 else perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(WARM_UP + rounds):
        for name, run in runs.items():
            begin = clock()
            run()
            if round_ >= WARM_UP:
                seconds[name].append(clock() - begin)
    return {name: median(times) for name, times in seconds.items()}


def table(times: dict[str, float]) -> str:
    cdist, addmm = (time for name, time in times.items() if name.startswith("floor"))
    lines = [
        "| forward and backward | median, us | times the `cdist` floor | times the `addmm` floor |",
        "|---|--:|--:|--:|",
    ]
    lines += [f"| {name} | {t * 1e6:.0f} | {t / cdist:.2f} | {t / addmm:.2f} |" for name, t in times.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="the layer's overhead on small batches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{VECTORS} vectors, {CODES} codes, dim {DIM}, float32; PyTorch {torch.__version__}, ", end="")
    print(f"{arguments.threads} thread(s), {arguments.rounds} rounds; the bar is {BAR:.1f}\n")
    print(table(medians(contenders(), arguments.rounds)))


if __name__ == "__main__":
    main()
