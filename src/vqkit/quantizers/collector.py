"""Where the statistics of a codebook wait, between backward and the step that applies them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqkit.functional.sampling import sample_rows

# Accumulating over more micro-batches than this without a step is far rarer than forgetting the step.
_PATIENCE = 100


class Statistics(NamedTuple):
    """What was collected: how many vectors were not finite, counts (K,), sums of residuals (K, D) or (0, D), a sample.

    ``sample`` (s, D) are distinct vectors and ``weights`` (s,) how often each occurred. ``flat`` holds the first three
    as one tensor and ``padded`` the sample with its weights and rows of NaN, for a collective.
    """

    faulty: Tensor
    counts: Tensor
    sums: Tensor
    sample: Tensor
    weights: Tensor
    flat: Tensor
    padded: Tensor


class Collector:
    """Leaves that autograd fills; ``key`` gives the key of the sample, which changes from step to step.

    A leaf is expanded from one element: it takes no memory, belongs to no module, and so is neither reduced nor
    broadcast, decayed nor clipped. The flat gradient of ``statistics`` is (1 + K + K D,): faulty, counts (exact up to
    2^24 vectors of one code in one step), sums. That of a sample is (S, D + 2): vectors, how often
    each occurred, and a 1. It cannot be added up: a hook merges it when autograd has accumulated it, and only then.
    """

    def __init__(self, codebook: Tensor, sums: bool, vectors: int, key: Callable[[], Tensor], needs_step: bool) -> None:
        self.codes, self.dim = codebook.shape
        self.width = self.dim if sums else 0
        self.key = key
        self.backwards = 0
        self.statistics = _leaf(codebook, 1 + self.codes * (1 + self.width))
        self.vectors = vectors
        self._sample = self._new_sample_leaf() if vectors else None
        self._merged: Tensor | None = None
        if needs_step:
            self.statistics.register_post_accumulate_grad_hook(self._count)

    @property
    def sample(self) -> Tensor | None:
        """The leaf for one call. Autograd adds what two calls in one graph give to one leaf, so each has its own.

        A compiled graph cannot make a leaf, and shares one: there the rows of two calls in one graph are passed over.
        """
        if self._sample is None or torch.compiler.is_compiling():
            return self._sample
        return self._new_sample_leaf()

    def _new_sample_leaf(self) -> Tensor:
        leaf = _leaf(self.statistics, self.vectors, self.dim + 2)
        leaf.register_post_accumulate_grad_hook(self._merge)
        return leaf

    def add(self, statistics: Tensor, sample: Tensor | None) -> None:
        """Collects without a backward pass."""
        leaf = self.statistics
        leaf.grad = statistics if leaf.grad is None else leaf.grad + statistics
        if self._sample is not None:
            self._sample.grad = sample
            self._merge(self._sample)

    def take(self) -> Statistics:
        """What was collected since the last time; zeros, and a sample of NaN, where nothing was."""
        leaf = self.statistics
        flat = leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad
        sample = self._merged
        if sample is None:
            sample = leaf.new_full((self.vectors, self.dim + 1), torch.nan)
        leaf.grad, self._merged, self.backwards = None, None, 0
        return self._unflatten(flat, sample)

    def merge(self, flat: Tensor, samples: Tensor) -> Statistics:
        """The statistics of all ranks: their sum, and the samples of all of them, of which the smallest hashes stay."""
        flat, samples = flat.to(self.statistics), samples.to(self.statistics).view(-1, self.dim + 1)
        return self._unflatten(flat, self._least(samples))

    def _unflatten(self, flat: Tensor, sample: Tensor) -> Statistics:
        counts, sums = flat[1 : 1 + self.codes], flat[1 + self.codes :].view(-1, self.dim)
        drawn = sample[torch.isfinite(sample).all(1)]
        return Statistics(flat[0], counts, sums, drawn[:, :-1], drawn[:, -1], flat, sample)

    def _least(self, samples: Tensor) -> Tensor:
        return sample_rows(samples[:, :-1], samples[:, -1], self.key(), self.vectors)

    def _count(self, leaf: Tensor) -> None:
        self.backwards += 1
        if self.backwards == _PATIENCE:
            warnings.warn(
                f"{_PATIENCE} backward passes since the codebook was last stepped: it only learns in steps. Call "
                "vqkit.attach(optimizer, model) once, or vqkit.step(model) after each optimizer.step().",
                RuntimeWarning,
                stacklevel=2,
            )

    def _merge(self, leaf: Tensor) -> None:
        gradient: Any = leaf.grad  # autograd has just filled it
        rows, marks = gradient[:, :-1], gradient[:, -1:]
        rows = torch.where(marks == 1, rows, torch.nan)  # 2 where the rows of two calls were added
        self._merged = rows if self._merged is None else self._least(torch.cat([self._merged, rows]))
        leaf.grad = None


def _leaf(like: Tensor, *shape: int) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)  # a frozen codebook may be in half precision
    return like.detach().new_zeros(1, dtype=dtype).expand(*shape).requires_grad_()
