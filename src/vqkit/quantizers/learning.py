"""The step in which codebooks learn, and how it follows the optimizer's."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqkit.quantizers.collector import Statistics
from vqkit.quantizers.vector import VectorQuantizer

if TYPE_CHECKING:
    from torch.optim import Optimizer


@torch.no_grad()
def step(model: nn.Module, optimizer: Optimizer | None = None, group: dist.ProcessGroup | None = None) -> None:
    """Applies what the codebooks of ``model`` collected since the last step; call it after ``optimizer.step()``.

    Under a process group (``group``, else the default one if there is one) statistics are summed over its ranks, all of
    which must call. Where no rank collected anything, nothing changes. ``optimizer`` is needed only where codes that
    learn by gradient are revived: what it remembers of their rows is then zeroed.
    """
    quantizers = _quantizers(model)
    if not quantizers:
        raise ValueError(f"model ({type(model).__name__}) holds no VectorQuantizer: pass the model that contains it.")
    for quantizer, statistics in zip(quantizers, _over_ranks(quantizers, group), strict=True):
        faulty = int(statistics.faulty)
        if faulty:
            warnings.warn(
                f"{faulty} vectors that reached the quantizer held NaN or infinity; no codebook learnt from them. "
                "Lower the learning rate or the loss scale, or clip gradients.",
                RuntimeWarning,
                stacklevel=2,
            )
        changed = quantizer.learn(statistics)
        if optimizer is not None and len(changed) and quantizer.update.by_gradient:
            for memory in optimizer.state.get(quantizer.codebook, {}).values():
                if isinstance(memory, Tensor) and memory.shape == quantizer.codebook.shape:
                    memory[changed] = 0


def discard(model: nn.Module) -> None:
    """Drops what the codebooks of ``model`` collected since the last step, as ``zero_grad`` does with gradients.

    For a batch that is given up between ``backward()`` and the step. ``optimizer.zero_grad()`` alone keeps statistics.
    """
    for quantizer in _quantizers(model):
        quantizer.collector.take()


class Attachment:
    """Handle of ``vqkit.attach``; ``remove()`` takes the hook off again."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, group: dist.ProcessGroup | None) -> None:
        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            # A fused optimizer runs its hooks on a step that the gradient scaler made it skip.
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is None or not bool(found_inf):
                step(model, optimizer, group)

        self.optimizer = weakref.ref(optimizer)  # an attachment whose optimizer is gone does not count
        self._quantizers = _quantizers(model)
        self._hook = optimizer.register_step_post_hook(after_step)
        for quantizer in self._quantizers:
            quantizer.attachment = self

    def remove(self) -> None:
        self._hook.remove()
        for quantizer in self._quantizers:
            if quantizer.attachment is self:
                quantizer.attachment = None


def attach(optimizer: Optimizer, model: nn.Module, group: dist.ProcessGroup | None = None) -> Attachment:
    """Makes every ``optimizer.step()`` apply the codebook statistics of ``model``: call it once, before training.

    A step that a gradient scaler skips moves no codebook. LBFGS, a compiled ``optimizer.step`` and a deep copy of the
    optimizer do not run the hook as needed: call ``vqkit.step(model)`` yourself there.

    Raises:
        ValueError: the optimizer owns no parameter of the model, the model holds no quantizer, or it is attached
            already (of a GAN's two optimizers only the autoencoder's is attached).

    >>> import vqkit
    >>> model = nn.Sequential(nn.Linear(3, 8), vqkit.VectorQuantizer(dim=8, codebook_size=32, update=vqkit.EMA()))
    >>> handle = attach(torch.optim.Adam(model.parameters()), model)
    """
    quantizers = _quantizers(model)
    if not quantizers:
        raise ValueError(f"model ({type(model).__name__}) holds no VectorQuantizer: pass the model that contains it.")
    for quantizer in quantizers:
        if quantizer.attachment is not None and quantizer.attachment.optimizer() is not None:
            gc.collect()  # optimizers sit in reference cycles: one that a notebook has replaced may linger
        if quantizer.attachment is not None and (other := quantizer.attachment.optimizer()) is not None:
            which = "this optimizer" if other is optimizer else f"another optimizer ({type(other).__name__})"
            raise ValueError(
                f"model is attached to {which} already; twice would apply half of the statistics each time. Attach "
                "only the optimizer that trains the encoder, once; to change it, remove() the first handle."
            )
    owned = {id(parameter) for group_ in optimizer.param_groups for parameter in group_["params"]}
    if not any(id(parameter) in owned for parameter in model.parameters()):
        raise ValueError("optimizer owns no parameter of model: attach the optimizer that trains this model.")
    return Attachment(optimizer, model, group)


def start(model: nn.Module, batches: Iterable[Any], group: dist.ProcessGroup | None = None) -> None:
    """Starts every codebook that waits for data (``KMeans``) from the encoder outputs of ``batches``.

    Each batch is an input of ``model``, or a tuple or list of its arguments. The model runs in evaluation mode, without
    gradients, up to the quantizer; where it holds several, each starts after those before it. Started ones stay.

    Raises:
        ValueError: no batch, or none that brings a vector to a quantizer that waits.
    """
    waiting = [quantizer for quantizer in _quantizers(model) if quantizer.pending]
    if len(waiting) > 1:
        batches = list(batches)  # each of them needs a pass of its own
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        while waiting:
            started = _start_next(model, waiting, batches, group)
            waiting.remove(started)
    finally:
        for module, training in modes:
            module.training = training


class _Reached(Exception):
    """Ends a forward pass at the quantizer that is to start."""


@torch.no_grad()
def _start_next(
    model: nn.Module, waiting: list[VectorQuantizer], batches: Iterable[Any], group: dist.ProcessGroup | None
) -> VectorQuantizer:
    reached: list[VectorQuantizer] = []

    def observe(quantizer: VectorQuantizer, args: tuple, kwargs: dict) -> None:
        quantizer.observe(*args, **kwargs)
        reached.append(quantizer)
        raise _Reached

    handles = [quantizer.register_forward_pre_hook(observe, with_kwargs=True) for quantizer in waiting]
    try:
        for batch in batches:
            try:
                model(*batch) if isinstance(batch, tuple | list) else model(batch)
            except _Reached:
                pass
    finally:
        for handle in handles:
            handle.remove()
    if not reached:
        raise ValueError(
            f"no batch reached a quantizer that waits for data: pass at least one, and see that model "
            f"({type(model).__name__}) calls its quantizer in forward."
        )
    quantizer = reached[0]
    (statistics,) = _over_ranks([quantizer], group)
    quantizer.learn(statistics._replace(counts=statistics.counts / len(reached)))
    if quantizer.pending:
        raise ValueError("batches brought no vector to the quantizer: all of them are empty or masked.")
    return quantizer


def _quantizers(model: nn.Module) -> list[VectorQuantizer]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; it must be a torch.nn.Module: attach(optimizer, model).")
    return [module for module in model.modules() if isinstance(module, VectorQuantizer)]


def _over_ranks(quantizers: list[VectorQuantizer], group: dist.ProcessGroup | None) -> list[Statistics]:
    """What every rank collected, summed in one collective that all join; emptiness is decided after it.

    Samples cannot be summed, so each rank adds its own to zeros in a place of its own.
    """
    own = [quantizer.collector.take() for quantizer in quantizers]
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return own
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    parts: list[Tensor] = []
    for statistics in own:
        places = statistics.padded.new_zeros(ranks, *statistics.padded.shape)
        places[rank] = statistics.padded
        parts += [statistics.flat, places.reshape(-1)]
    wide = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    together = torch.cat([part.to(parts[0].device, wide) for part in parts])
    dist.all_reduce(together, group=group)
    split = together.split([len(part) for part in parts])
    return [
        q.collector.merge(flat, places) for q, flat, places in zip(quantizers, split[::2], split[1::2], strict=True)
    ]
