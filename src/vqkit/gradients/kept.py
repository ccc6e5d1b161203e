"""What a measurement must leave as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state() -> Iterator[None]:
    """The random states of Python, NumPy and PyTorch are afterwards as they were."""
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def seed(number: int) -> None:
    """Begins all three anew."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
