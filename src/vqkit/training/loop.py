"""The training loop, from top to bottom."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from vqkit.data import RandomCrops
from vqkit.data.loading import load
from vqkit.functional.faults import NotFinite
from vqkit.models import VQVAE
from vqkit.quantizers import attach, discard, start
from vqkit.training.checkpoints import Checkpoints
from vqkit.training.config import Config
from vqkit.training.hardware import Hardware
from vqkit.training.metrics import Diverged, Watcher, Window

_START_BATCHES = 16  # of 16 crops of 64 codes: 32 vectors for each of 512 codes, twice what k-means samples


def fit(
    model: VQVAE,
    crops: RandomCrops,
    variance: float,
    config: Config,
    directory: Path,
    hardware: Hardware = Hardware(device="cpu"),
    watchers: Sequence[Watcher] = (),
) -> int:
    """Trains ``model`` from the last checkpoint in ``directory`` on, and returns the number of steps it then has.

    These are fewer than asked for only after Ctrl-C or SIGTERM. Every ``log_every`` steps the watchers get the means
    since the last row; every ``save_every`` steps, and at the end, model and checkpoint are written.

    Raises:
        Diverged: the loss, or a weight, is no longer a number; no checkpoint holds such a state.
        OSError: a checkpoint cannot be written; those before it stay.
    """
    model.train()
    # With the channels last oneDNN's convolutions are faster, by up to 15 % where this was measured.
    model = model.to(hardware.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    attach(optimizer, model)
    scaler = hardware.scaler()
    checkpoints = Checkpoints(directory, model, optimizer, scaler)
    taken = checkpoints.restore()
    for watcher in watchers:
        watcher.begin(taken)
    # Crops that no step sees.
    start(model, (_to(crops.batch_at(config.steps + i), hardware) for i in range(_START_BATCHES)))
    forward = torch.compile(model) if hardware.compile else model

    window = Window(model.quantizer.codebook_size)
    steps = range(taken, config.steps)
    with _interruptible() as interrupted:
        for step, batch in zip(steps, load(crops, steps, hardware.workers or 0), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * config.schedule.factor(step, config.steps)
            x = _to(batch, hardware)
            optimizer.zero_grad()
            try:
                losses, indices, x_hat = _backward(forward, x, variance, config, hardware, scaler)
            except NotFinite as error:
                raise Diverged(f"step {step + 1}: the encoder's outputs, or codes, are no longer finite") from error
            window.add(step + 1, losses, indices, len(x))
            scaler.step(optimizer)
            scaler.update()
            if scaler.is_enabled():  # of a step that it skipped the statistics wait still, and no checkpoint holds them
                discard(model)

            taken = step + 1
            last = taken == config.steps or interrupted()
            saving = last or taken % config.save_every == 0
            if saving or taken % config.log_every == 0:
                row = window.row(taken, optimizer.param_groups[0]["lr"])
                for watcher in watchers:
                    watcher.row(row)
                window = Window(model.quantizer.codebook_size)
            if saving:
                _require_finite(model, taken)
                checkpoints.save(taken)
                for watcher in watchers:
                    watcher.images(taken, x, x_hat)
            if last:
                break
    return taken


def _backward(
    forward: Callable[[Tensor], tuple],
    x: Tensor,
    variance: float,
    config: Config,
    hardware: Hardware,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a batch, in ``accumulate`` parts; its mean losses (4,), indices, and reconstructions."""
    parts = []
    for part in x.chunk(config.accumulate):
        with hardware.autocast():
            x_hat, indices, losses = forward(part)
        reconstruction = torch.nn.functional.mse_loss(x_hat.float(), part) / variance
        loss = reconstruction + losses.total
        scaler.scale(loss / config.accumulate).backward()
        measured = torch.stack([loss, reconstruction, losses.codebook, losses.commitment]).detach()
        parts.append((measured / config.accumulate, indices, x_hat.detach()))
    means, codes, reconstructions = zip(*parts, strict=True)
    return torch.stack(means).sum(0), torch.cat(codes), torch.cat(reconstructions)


def _to(batch: Tensor, hardware: Hardware) -> Tensor:
    return batch.to(hardware.device, memory_format=torch.channels_last)


def _require_finite(model: VQVAE, step: int) -> None:
    """A gradient may be infinite where the loss still was a number."""
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"step {step}: {name} is no longer finite")


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
