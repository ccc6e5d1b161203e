"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from vqkit.codebooks import Usage
from vqkit.data import RandomCrops
from vqkit.models import VQVAE
from vqkit.quantizers import attach, start
from vqkit.training.config import Config
from vqkit.training.progress import Progress

Row = dict[str, float]
_START_BATCHES = 16  # of 16 crops of 64 codes: 32 vectors for each of 512 codes, twice what k-means samples


class Diverged(RuntimeError):
    """The loss is no longer a number."""


def fit(
    model: VQVAE, crops: RandomCrops, variance: float, config: Config, progress: Progress, log: Callable[[Row], None]
) -> int:
    """Trains ``model`` and returns the number of steps taken: fewer than asked for only after Ctrl-C or SIGTERM.

    Every ``log_every`` steps ``log`` gets the means since the last row, and the perplexity of all codes since then.
    """
    model.train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # oneDNN's convolutions are faster so, by 1.2 to 1.5 on two cores
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    attach(optimizer, model)
    # Crops that no step sees.
    start(model, (crops.batch_at(config.steps + i) for i in range(_START_BATCHES)))

    sums, usage, since = _fresh(model)
    with _interruptible() as interrupted, progress:
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, config)
            x = crops.batch_at(step).contiguous(memory_format=torch.channels_last)
            try:
                x_hat, indices, losses = model(x)
            except ValueError as error:  # the search found NaN among the encoder's outputs
                raise _diverged(step, str(error), config) from error
            reconstruction = torch.nn.functional.mse_loss(x_hat, x) / variance
            loss = reconstruction + losses.total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            usage.add(indices)
            sums += torch.stack(
                [loss.detach(), reconstruction.detach(), losses.codebook.detach(), losses.commitment.detach()]
            )
            taken = step + 1
            if taken % config.log_every == 0 or taken == config.steps or interrupted():
                if not bool(torch.isfinite(sums).all()):
                    raise _diverged(step, "the loss is no longer finite", config)
                done = (taken - 1) % config.log_every + 1
                names = ("loss", "reconstruction", "codebook", "commitment")
                row = {"step": taken, **{name: float(value) / done for name, value in zip(names, sums, strict=True)}}
                row["perplexity"], row["learning_rate"] = usage.perplexity, optimizer.param_groups[0]["lr"]
                row["images_per_second"] = done * len(x) / (time.monotonic() - since)
                progress.row(row)
                log(row)
                sums, usage, since = _fresh(model)
            if interrupted():
                return taken
    return config.steps


def schedule(step: int, config: Config) -> float:
    """The factor on the learning rate: linear over the warmup, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _diverged(step: int, what: str, config: Config) -> Diverged:
    return Diverged(f"step {step}: {what}; try a lower learning rate: --set learning_rate={config.learning_rate / 4:g}")


def _fresh(model: VQVAE) -> tuple[torch.Tensor, Usage, float]:
    return torch.zeros(4), Usage(model.quantizer.codebook_size), time.monotonic()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the loop after the step, not in the middle of it; a second one ends the program."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield lambda: False
        return

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
