"""Where the statistics of a codebook wait, between backward and the step that applies them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.functional.sampling import sample_rows

# Accumulating over more micro-batches than this without a step is far rarer than forgetting the step.
_PATIENCE = 100


class Statistics(NamedTuple):
    """What was collected: how many vectors were not finite, counts (K,), sums of residuals (K, D) or (0, D), a sample.

    ``flat`` holds the first three as one tensor and ``padded`` the sample with its rows of NaN, for a collective.
    """

    faulty: Tensor
    counts: Tensor
    sums: Tensor
    sample: Tensor
    flat: Tensor
    padded: Tensor


class Collector:
    """Two leaves that autograd fills; ``key`` gives the key of the sample, which changes from step to step.

    The leaves are expanded from one element: they take no memory, belong to no module, and so are neither reduced nor
    broadcast, decayed nor clipped. The flat gradient of ``statistics`` is (1 + K + K D,): faulty, counts (exact
    up to 2^24 vectors of one code in one step), sums. That of
    ``sample`` cannot be added up, so a hook merges it when autograd has accumulated it, and only then.
    """

    def __init__(self, codebook: Tensor, sums: bool, vectors: int, key: Callable[[], Tensor], needs_step: bool) -> None:
        self.codes, self.dim = codebook.shape
        self.width = self.dim if sums else 0
        self.key = key
        self.backwards = 0
        self.statistics = _leaf(codebook, 1 + self.codes * (1 + self.width))
        self.sample = _leaf(codebook, vectors, self.dim) if vectors else None
        self._merged: Tensor | None = None
        if needs_step:
            self.statistics.register_post_accumulate_grad_hook(self._count)
        if self.sample is not None:
            self.sample.register_post_accumulate_grad_hook(self._merge)

    def add(self, statistics: Tensor, sample: Tensor | None) -> None:
        """Collects without a backward pass."""
        leaf = self.statistics
        leaf.grad = statistics if leaf.grad is None else leaf.grad + statistics
        if self.sample is not None:
            self.sample.grad = sample
            self._merge(self.sample)

    def take(self) -> Statistics:
        """What was collected since the last time; zeros, and a sample of NaN, where nothing was."""
        leaf = self.statistics
        flat = leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad
        sample = self._merged
        if sample is None:
            sample = leaf.new_full((0 if self.sample is None else len(self.sample), self.dim), torch.nan)
        leaf.grad, self._merged, self.backwards = None, None, 0
        return self._unflatten(flat, sample)

    def merge(self, flat: Tensor, samples: Tensor) -> Statistics:
        """The statistics of all ranks: their sum, and the samples of all of them, of which the smallest hashes stay."""
        flat, samples = flat.to(self.statistics), samples.to(self.statistics).view(-1, self.dim)
        return self._unflatten(flat, sample_rows(samples, self.key(), 0 if self.sample is None else len(self.sample)))

    def _unflatten(self, flat: Tensor, sample: Tensor) -> Statistics:
        counts, sums = flat[1 : 1 + self.codes], flat[1 + self.codes :].view(-1, self.dim)
        return Statistics(flat[0], counts, sums, sample[torch.isfinite(sample).all(1)], flat, sample)

    def _count(self, leaf: Tensor) -> None:
        self.backwards += 1
        if self.backwards == _PATIENCE:
            warnings.warn(
                f"{_PATIENCE} backward passes, and the codebook was never stepped: it does not learn. Call "
                "vqkit.attach(optimizer, model) once, or vqkit.step(model) after each optimizer.step().",
                RuntimeWarning,
                stacklevel=2,
            )

    def _merge(self, leaf: Tensor) -> None:
        both = [rows for rows in (self._merged, leaf.grad) if rows is not None]
        self._merged, leaf.grad = sample_rows(torch.cat(both), self.key(), leaf.shape[0]), None


def _leaf(like: Tensor, *shape: int) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)  # a frozen codebook may be in half precision
    return like.detach().new_zeros(1, dtype=dtype).expand(*shape).requires_grad_()
