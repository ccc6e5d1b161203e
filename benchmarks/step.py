"""One training step of the public reference's CIFAR-10 model: ours against the plain one, and what ours is made of.

    python -m benchmarks.step [--batch N] [--rounds N] [--threads N] [--compile]

All contenders run in turn in one process, in an order that rotates, on the same batch of 32x32 crops of photos. A row
is the median over all rounds; a ratio is the median of the ratios of single rounds, with its quartiles. The clock is
processor time where one thread works (what other programs take does not count), else time on the clock.

What the quantizer costs is the difference between our step and one with the identity in its place. What the rest is
made of comes from ``torch.profiler``, which slows short operations down: its shares are of the step that it watched.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from math import prod
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import vqkit
from benchmarks.plain import PlainVQVAE
from vqkit.data import RandomCrops, open_images
from vqkit.functional.usage import Usage
from vqkit.models import VQVAE
from vqkit.quantizers import Losses, Quantized
from vqkit.training.config import resolve

RECIPE = resolve("cifar10")
MODEL, RATE, VARIANCE = RECIPE.model, RECIPE.learning_rate, 0.08
WITHOUT = "ours, identity for the quantizer"
WARM_UP, MATRIX = 3, 2048
WATCHED = 15  # steps under the profiler, at most; reading its events takes a second for each
Step = Callable[[Tensor], object]


class Identity(nn.Module):
    """In place of a quantizer: passes z on."""

    codebook_size = MODEL.codebook_size

    def forward(self, z: Tensor) -> Quantized:
        zero = torch.zeros(())
        return Quantized(z, torch.zeros(len(z) * z[0, 0].numel(), dtype=torch.int64), Losses(zero, zero, zero))


class Named(nn.Module):
    """A module whose forward stands under ``name`` in a profile."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.module = name, module

    def forward(self, *args: Tensor) -> Any:
        with record_function(self.name):
            return self.module(*args)


def our_model() -> VQVAE:
    return MODEL.build(seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def our_step(model: VQVAE, run: Callable[[Tensor], Any], optimizer: torch.optim.Optimizer) -> Step:
    """As ``vqkit.training.fit`` takes it."""
    usage, sums = Usage(MODEL.codebook_size), torch.zeros(4)

    def step(batch: Tensor) -> None:
        x = batch.contiguous(memory_format=torch.channels_last)
        x_hat, indices, losses = run(x)
        reconstruction = F.mse_loss(x_hat, x) / VARIANCE
        loss = reconstruction + losses.total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with record_function("log"):
            usage.add(indices)
            terms = [loss.detach(), reconstruction.detach(), losses.codebook.detach(), losses.commitment.detach()]
            sums.add_(torch.stack(terms))

    return step


def ours() -> Step:
    model = our_model()
    optimizer = adamw(model)
    vqkit.attach(optimizer, model)
    return our_step(model, model, optimizer)


def ours_compiled() -> Step:
    model = our_model()
    optimizer = adamw(model)
    vqkit.attach(optimizer, model)
    return our_step(model, torch.compile(model), optimizer)


def ours_without_quantizer() -> Step:
    model = our_model()
    model.quantizer = Identity()  # type: ignore[assignment]
    return our_step(model, model, adamw(model))


def ours_watched() -> Step:
    """With the quantizer's forward and its step named for the profiler."""
    model = our_model()
    model.quantizer = Named("quantizer", model.quantizer)  # type: ignore[assignment]
    optimizer, learning = adamw(model), record_function("vqkit.step")
    optimizer.register_step_post_hook(lambda *_: learning.__enter__() and None)
    vqkit.attach(optimizer, model)
    optimizer.register_step_post_hook(lambda *_: learning.__exit__(None, None, None))
    return our_step(model, model, optimizer)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), RATE, weight_decay=RECIPE.weight_decay)


def plain(layout: torch.memory_format) -> Step:
    model = PlainVQVAE().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    errors, perplexities = [], []

    def step(batch: Tensor) -> None:
        x = batch.contiguous(memory_format=layout)
        optimizer.zero_grad()
        x_hat, commitment, perplexity = model(x)
        error = F.mse_loss(x_hat, x) / VARIANCE
        loss = error + commitment
        loss.backward()
        optimizer.step()
        errors.append(error.item())
        perplexities.append(perplexity.item())

    return step


# --- timing -------------------------------------------------------------------------------------------------------

Times = dict[str, list[float]]


def time_all(contenders: dict[str, Step], batches: Iterable[Tensor]) -> Times:
    """Seconds of each, round by round; the first rounds do not count."""
    clock = process_time if torch.get_num_threads() == 1 else perf_counter
    names = list(contenders)
    times: Times = {name: [] for name in names}
    for round_, batch in enumerate(batches):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            begin = clock()
            contenders[name](batch)
            if round_ >= WARM_UP:
                times[name].append(clock() - begin)
    return times


def spread(values: list[float], form: str) -> str:
    """Median and quartiles."""
    low, middle, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


# --- what a step is made of ---------------------------------------------------------------------------------------

FORWARD, BACKWARD, QUANTIZER = "convolutions, forward", "convolutions, backward", "quantizer"
BOTH = (FORWARD, BACKWARD)
NODE = "autograd::engine::evaluate_function: "
PARTS = {
    "aten::convolution": FORWARD,
    "aten::convolution_backward": BACKWARD,
    "quantizer": QUANTIZER,
    "vqkit.step": QUANTIZER,
    NODE + "_QuantizeBackward": QUANTIZER,
    "Optimizer.step#AdamW.step": "optimizer",
    "log": "usage of codes, sums for the log",
    "aten::relu": "ReLU, both ways",
    NODE + "ReluBackward0": "ReLU, both ways",
    "aten::mse_loss": "reconstruction loss, both ways",
    NODE + "MseLossBackward0": "reconstruction loss, both ways",
    "aten::add": "sums: residual branches, gradients, +- 0.5",
    "aten::add_": "sums: residual branches, gradients, +- 0.5",
    "aten::sub": "sums: residual branches, gradients, +- 0.5",
    "aten::contiguous": "layout copies outside convolutions",
    "aten::clone": "layout copies outside convolutions",
    "aten::copy_": "layout copies outside convolutions",
}
REST = "Python, autograd and the rest"
Shape = tuple[int, ...]
Layer = tuple[str, Shape, Shape]  # forward or backward, the shapes of a convolution's input and weight


class Profile:
    """Seconds of a step under the profiler, by part and by convolution: of each the median over all steps."""

    def __init__(self, step: Step, batches: Iterable[Tensor]) -> None:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
            for batch in batches:
                with record_function("step"):
                    step(batch)
        parts: defaultdict[str, list[float]] = defaultdict(list)
        layers: defaultdict[Layer, list[float]] = defaultdict(list)
        for event in watched.events():
            if event.name == "step":
                self._parts, self._layers, self.calls = Counter[str](), Counter[Layer](), Counter[Layer]()
                self._walk(event, REST)
                for part, seconds in self._parts.items():
                    parts[part].append(seconds)
                for layer, seconds in self._layers.items():
                    layers[layer].append(seconds)
        self.parts = {part: median(seconds) for part, seconds in parts.items()}
        self.layers = {layer: median(seconds) for layer, seconds in layers.items()}
        self.total = sum(self.parts.values())

    def _walk(self, event: Any, part: str) -> None:
        """An operation counts for the outermost part that names it; but the codebook learns inside the optimizer."""
        own = PARTS.get(event.name, part)
        if part == REST or own == QUANTIZER:
            if own in BOTH:
                first = own == BACKWARD  # whose first argument is the gradient of the output
                layer = own, tuple(event.input_shapes[first]), tuple(event.input_shapes[first + 1])
                self._layers[layer] += event.cpu_time_total / 1e6
                self.calls[layer] += 1
            part = own
        self._parts[part] += event.self_cpu_time_total / 1e6
        for child in event.cpu_children:
            self._walk(child, part)


def flops(part: str, x: Shape, weight: Shape) -> int:
    """Multiplications and additions of one call: two for each element of the weight at each position.

    Positions are those of the smaller map, be it the input (of a transposed convolution) or the output. Backward is
    that twice, for the input and for the weight; once where the input is the images.
    """
    halves = 2 if weight[2:] == (4, 4) and x[1] == weight[1] else 1  # our 4x4 convolutions halve the map, or double it
    positions = x[0] * (x[2] // halves) * (x[3] // halves)
    needed = 1 if part == FORWARD or x[1] == MODEL.channels else 2
    return 2 * positions * prod(weight) * needed


# --- tables -------------------------------------------------------------------------------------------------------


def speed_table(times: Times) -> str:
    lines = ["| a step | median, ms | times ours |", "|---|--:|--:|"]
    for name in times:
        if name.startswith(("plain", "ours")):
            ratios = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
            lines.append(f"| {name} | {1e3 * median(times[name]):.1f} | {spread(ratios, '.2f')} |")
    return "\n".join(lines)


def parts_table(times: Times, profiled: Profile) -> str:
    ours, without = times["ours"], times[WITHOUT]
    step = median(ours)
    quantizer = [(a - b) / a for a, b in zip(ours, without, strict=True)]
    lines = [
        "| of our step | ms | share |",
        "|---|--:|--:|",
        f"| quantizer, by difference | {1e3 * (step - median(without)):.1f} | {spread(quantizer, '.1%')} |",
    ]
    lines += [
        f"| {part}{', by profiler' if part == QUANTIZER else ''} | {1e3 * step * seconds / profiled.total:.1f} | "
        f"{seconds / profiled.total:.1%} |"
        for part, seconds in sorted(profiled.parts.items(), key=lambda item: -item[1])
    ]
    data = [a / b for a, b in zip(times["data"], ours, strict=True)]
    lines.append(f"| loading a batch, beside the step | {1e3 * median(times['data']):.1f} | {spread(data, '.1%')} |")
    return "\n".join(lines)


def layers_table(times: Times, profiled: Profile) -> str:
    """The profiler's seconds are scaled to the median step, so that they and the matrix product have one clock."""
    product = 2 * MATRIX**3 / median(times["product"])
    scale = median(times["ours"]) / profiled.total
    lines = [
        f"A {MATRIX} x {MATRIX} matrix product reaches {product / 1e9:.0f} GFLOP/s in the same rounds. Of that:",
        "",
        "| convolution (calls) | forward, ms | rate | backward, ms | rate |",
        "|---|--:|--:|--:|--:|",
    ]
    works, spent = [], []
    for part, x, weight in sorted(profiled.layers, key=lambda layer: -profiled.layers[layer]):
        if part == BACKWARD:
            both: list[Layer] = [(FORWARD, x, weight), (BACKWARD, x, weight)]
            calls = profiled.calls[both[0]]
            works.append([calls * flops(*layer) for layer in both])
            spent.append([scale * profiled.layers[layer] for layer in both])
            name = f"{weight[2]}x{weight[3]}, weight {weight[0]} x {weight[1]}, on {x[1]} x {x[2]} x {x[3]} ({calls})"
            lines.append(rates(name, works[-1], spent[-1], product))
    work = [sum(column) for column in zip(*works, strict=True)]
    seconds = [sum(column) for column in zip(*spent, strict=True)]
    lines.append(rates("all", work, seconds, product))
    share = sum(work) / sum(seconds) / product
    return "\n".join([*lines, "", f"Both ways: {sum(work) / 1e9:.1f} GFLOP at {share:.0%} of the product's rate."])


def rates(name: str, work: list[int], seconds: list[float], product: float) -> str:
    cells = [f"{1e3 * s:.1f} | {w / s / product:.0%}" for w, s in zip(work, seconds, strict=True)]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="a training step of the CIFAR-10 recipe against the plain model's")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also our model through torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"batch {arguments.batch}, {arguments.threads} thread(s), {arguments.rounds} rounds, ", end="")
    print(f"float32, PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    print("\n\n".join(tables(arguments.batch, arguments.rounds, ours_compiled if arguments.compile else None)))


def tables(batch: int, rounds: int, compiled: Callable[[], Step] | None = None) -> list[str]:
    crops = RandomCrops(open_images().images, size=32, batch=batch, seed=0)
    later = iter(range(WARM_UP + rounds, 2**31))
    matrix = torch.randn(MATRIX, MATRIX)
    contenders: dict[str, Step] = {
        "plain": plain(torch.contiguous_format),
        "plain, channels last": plain(torch.channels_last),
        "ours": ours(),
        WITHOUT: ours_without_quantizer(),
        "data": lambda _: crops.batch_at(next(later)).contiguous(memory_format=torch.channels_last),
        "product": lambda _: matrix @ matrix,
    }
    if compiled is not None:
        contenders["ours, compiled"] = compiled()
    times = time_all(contenders, (crops.batch_at(i) for i in range(WARM_UP + rounds)))
    watched = ours_watched()
    for i in range(WARM_UP):
        watched(crops.batch_at(i))
    profiled = Profile(watched, (crops.batch_at(WARM_UP + i) for i in range(min(rounds, WATCHED))))
    return [speed_table(times), parts_table(times, profiled), layers_table(times, profiled)]


if __name__ == "__main__":
    main()
