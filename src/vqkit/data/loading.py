"""Batches in the order of steps, made here or, ahead of time, by other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from vqkit.data.crops import RandomCrops
from vqkit.data.sources import Images

if TYPE_CHECKING:
    from jaxtyping import Float32

_CAN_FORK = "fork" in multiprocessing.get_all_start_methods()


def workers_for(images: Images) -> int:
    """How many processes should load: none where all images are in memory, for a crop then costs next to nothing."""
    if images.images.kept or not _CAN_FORK:
        return 0
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def load(crops: RandomCrops, steps: range, workers: int) -> Iterator[Float32[torch.Tensor, "B C S S"]]:
    """``crops.batch_at(step)`` for each step in order; the same bits whatever the number of ``workers``.

    Workers leave Ctrl-C and SIGTERM to this process, and stop when the iterator is closed; where this process is
    killed they notice within 5 s. PyTorch's global generator is not drawn from.

    Raises: ValueError for a number below 0, or above where the system cannot fork.
    """
    if workers == 0:
        return map(crops.batch_at, steps)
    if workers < 0 or not _CAN_FORK:
        raise ValueError(f"workers is {workers}; it must be 0{' or more' if _CAN_FORK else ', without fork'}: use 0.")
    loader: DataLoader[torch.Tensor] = DataLoader(
        crops,  # type: ignore[arg-type]  # anything with __getitem__ will do
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="fork",
        generator=torch.Generator(),
    )
    # What is blocked here when a process is forked, is blocked there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            # From 3.12 on Python warns of forks beside threads; the workers here neither hold locks nor start any.
            warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
            return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
