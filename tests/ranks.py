"""Two processes that live as long as the test session: to start them costs seconds, a job milliseconds.

A job is a module-level function ``job(rank, join, *args)``, run in both at once. ``join()`` makes the gloo process
group, so that a job can build things before there is one; it is taken down after the job.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RANKS = 2
_COLLECTIVE_SECONDS, _JOB_SECONDS = 20, 90  # the first job waits for two imports of torch


def _serve(rank: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        job, args, store = pickle.loads(pipe.recv_bytes())

        def join(store: str = store) -> None:
            timeout = timedelta(seconds=_COLLECTIVE_SECONDS)
            dist.init_process_group("gloo", f"file://{store}", timeout, RANKS, rank)

        try:
            answer = (True, job(rank, join, *args))
        except Exception:
            answer = (False, traceback.format_exc())
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send_bytes(pickle.dumps(answer))


class _Ranks:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(RANKS)]
        self.pipes = [here for here, _ in ends]
        self.processes = [
            context.Process(target=_serve, args=(rank, there), daemon=True) for rank, (_, there) in enumerate(ends)
        ]
        for process in self.processes:
            process.start()

    def run(self, job: Callable[..., Any], args: tuple) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            for pipe in self.pipes:
                pipe.send_bytes(pickle.dumps((job, args, str(Path(folder) / "store"))))
            answers = []
            for pipe in self.pipes:
                if not pipe.poll(_JOB_SECONDS):
                    raise TimeoutError(f"a rank did not finish {job.__name__} within {_JOB_SECONDS} s")
                answers.append(pickle.loads(pipe.recv_bytes()))
        for done, answer in answers:
            if not done:
                raise RuntimeError(answer)
        return [answer for _, answer in answers]


_alive: list[_Ranks] = []


def on_two_ranks(job: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``job`` returned on rank 0 and on rank 1. Args and answers are pickled.

    Raises:
        RuntimeError: the job raised on a rank; the message holds its traceback.
        TimeoutError: a rank hangs; both are ended, and the next call starts new ones.
    """
    if not _alive:
        _alive.append(_Ranks())
    try:
        return _alive[0].run(job, args)
    except TimeoutError:
        for process in _alive.pop().processes:
            process.kill()
        raise
