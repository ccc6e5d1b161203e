"""The layer under audit behind one face: vectors along the last axis in; codes, indices and losses out, by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.gradients.audit.report import NotMeasured
from vqkit.quantizers import VectorQuantizer, step

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch.optim import Optimizer

COMPOSED = "no row of the table, though fixed by rows of it: projected, or a sum of several tables"
LAYOUTS = ("(B, T, D)", "(B, D, H, W)", "(B, D, T)", "(N, D)")  # in the order in which they are tried
COMPOSED = "no row of the table, though fixed by rows of it: projected, or a sum of several tables"


class Outcome(NamedTuple):
    """What one call gave, vectors last.

    ``losses`` are the scalars that depend on z or on the codebook by autograd's graph, by their path in what the layer
    returned; ``scalars`` the others (a perplexity; a loss that is detached); ``total`` what one adds to the objective.
    """

    z_q: Tensor  # (..., D)
    chosen: Tensor | None  # (...), int64
    losses: dict[str, Tensor]
    scalars: dict[str, Tensor]
    total: Tensor | None

    @property
    def indices(self) -> Tensor:
        if self.chosen is None:
            raise NotMeasured("the layer returns no indices, and its codebook was not found")
        return self.chosen

    @property
    def loss(self) -> Tensor:
        if self.total is None:
            raise NotMeasured("no loss of the layer depends on z or on a parameter")
        return self.total

    @property
    def objective(self) -> Tensor:
        """What a training step minimises here: ``mean(z_q^2) + total``."""
        return self.z_q.square().mean() + (0.0 if self.total is None else self.total)


@dataclass(frozen=True)
class Subject:
    """A layer, and what was found out about it. Its methods change the layer: work on a ``fresh()`` one.

    ``takes`` is one of ``LAYOUTS``; ``z_q``, ``indices``, ``losses`` and ``total`` (to be summed) are paths into what
    the layer returns: ``"2.1"``, ``"losses.total"``, "" for all of it. ``codebook`` is the name of a parameter or
    buffer, ``turned`` says that its columns are the codes, ``composed`` that what comes out is made of them, but is
    none of them. ``encoder`` and ``decoder`` are the names of methods; ``masks``: forward takes mask=. ``waiting`` is
    the layer before it saw the vectors that its codebook starts from; ``makes`` builds another layer.
    """

    layer: nn.Module
    dim: int
    takes: str
    z_q: str
    indices: str | None = None
    losses: tuple[str, ...] = ()
    total: tuple[str, ...] = ()
    codebook: str | None = None
    turned: bool = False
    composed: bool = False
    encoder: str | None = None
    decoder: str | None = None
    masks: bool = False
    waiting: nn.Module | None = None
    makes: Callable[[], nn.Module] | None = None

    def fresh(self, train: bool = True) -> Subject:
        """An independent copy."""
        # A tensor with a history (the product that weight_norm keeps) has no deep copy, and needs none.
        held = [t for m in self.layer.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
        layer = copy.deepcopy(self.layer, {id(tensor): tensor.detach().clone() for tensor in held})
        return replace(self, layer=layer.cpu().train(train))

    def unstarted(self) -> Subject:
        """With the codebook that is to start from data."""
        if self.waiting is None:
            raise NotMeasured("the codebook does not start from data")
        return replace(self, layer=self.waiting)

    def __call__(self, z: Float[Tensor, "... dim"], mask: Bool[Tensor, "..."] | None = None) -> Outcome:
        """One forward pass; ``mask`` is True where a vector counts."""
        arguments = {} if mask is None else {"mask": positions(mask, self.takes)}
        found = leaves(self.layer(arranged(z, self.takes), **arguments))
        if self.z_q not in found:
            raise NotMeasured(f"what the layer returns has no {self.z_q} here")
        z_q = _back(found[self.z_q], self.takes, z.shape)
        indices = as_indices(found[self.indices], prod(z.shape[:-1])) if self.indices in found else None
        if self.indices is None and self.codebook is not None:  # they are not returned: the code that z_q is
            indices = torch.cdist(z_q.detach().reshape(-1, self.dim).double(), self.table().double()).argmin(1)
        scalars = {
            name: leaf.mean()
            for name, leaf in found.items()
            if leaf.is_floating_point() and (leaf.numel() == 1 or name in self.losses)
        }
        losses = {name: scalars.pop(name) for name in self.losses if name in scalars}
        parts = [losses[name] for name in self.total if name in losses]
        shaped = None if indices is None else indices.view(z.shape[:-1])
        return Outcome(z_q, shaped, losses, scalars, torch.stack(parts).sum() if parts else None)

    def learn(
        self, z: Float[Tensor, "... dim"], optimizer: Optimizer | None = None, mask: Bool[Tensor, "..."] | None = None
    ) -> Outcome:
        """A training step of the objective."""
        out = self(z.detach().clone().requires_grad_(), mask)
        if out.objective.requires_grad:
            out.objective.backward()
        self.step(optimizer)
        return out

    def step(self, optimizer: Optimizer | None = None) -> None:
        """What follows backward: the optimizer's step, and what quantizers of vqkit learn after it."""
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        if any(isinstance(module, VectorQuantizer) for module in self.layer.modules()):
            step(self.layer, optimizer)

    # --- the codebook ---------------------------------------------------------------------------------------------

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer that holds the codes."""
        if self.codebook is None:
            raise NotMeasured("the codebook was not found")
        return state_of(self.layer)[self.codebook]

    @property
    def codes(self) -> int:
        return self.tensor.numel() // self.dim

    @property
    def learnable(self) -> bool:
        """Whether the codebook is a parameter that requires a gradient."""
        return isinstance(self.tensor, nn.Parameter) and self.tensor.requires_grad

    def as_table(self, tensor: Tensor) -> Float[Tensor, "codes dim"]:
        """A tensor of the codebook's shape (its gradient) as (K, D), in the same memory."""
        flat = tensor.view(tensor.shape[-2:])
        return flat.T if self.turned else flat

    @property
    def rows(self) -> Float[Tensor, "codes dim"]:
        """The codes, in the memory of the layer."""
        return self.as_table(self.tensor.detach())

    def table(self) -> Float[Tensor, "codes dim"]:
        """A copy of the codes."""
        return self.rows.clone()

    def of_rows(self) -> Subject:
        """Itself, where the codes that it chooses are what comes out."""
        if self.composed:
            raise NotMeasured(f"z_q is {COMPOSED}")
        return self

    @torch.no_grad()
    def place(self, codes: Float[Tensor, "codes dim"]) -> None:
        """Writes the codes into the codebook, by ``set_codebook`` where the layer has it.

        Else sums that the layer keeps beside them (of the codebook's shape) become the codes and counts (of K entries)
        one, so that they agree; and a flag that says that the codebook has not started says that it has.
        """
        shape, owner = self.tensor.shape, self.layer.get_submodule((self.codebook or "").rpartition(".")[0])
        set_codebook: Any = getattr(owner, "set_codebook", None)
        if set_codebook is not None:
            set_codebook(codes)
            return
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if tensor.shape == shape:
                tensor.copy_((codes.T if self.turned else codes).reshape(shape))
            elif tensor.numel() == self.codes or (tensor.numel() == 1 and ("init" in name or "start" in name)):
                tensor.fill_(1)

    # --- indices --------------------------------------------------------------------------------------------------

    def encode(self, z: Float[Tensor, "... dim"]) -> Int[Tensor, "..."]:
        for leaf in leaves(getattr(self.layer, self.encoder or "")(arranged(z, self.takes))).values():
            if (indices := as_indices(leaf, prod(z.shape[:-1]))) is not None:
                return indices.view(z.shape[:-1])
        raise NotMeasured(f"{self.encoder} gives no index for each vector")

    def decode(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        if self.decoder is None:
            raise NotMeasured("the layer has no method that decodes")
        method = getattr(self.layer, self.decoder)
        needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty and p.kind < 2]
        # In the published get_codebook_entry(indices, shape) no shape means vectors last.
        given, shape = positions(indices, self.takes), (*indices.shape, self.dim)
        for decoded in leaves(method(given, *[None] * (len(needed) - 1))).values():
            if decoded.numel() == prod(shape):
                first = decoded.shape == arranged(indices.new_empty(shape), self.takes).shape
                return _back(decoded, self.takes if first else "", shape)
        raise NotMeasured(f"{self.decoder} gives no vectors of length {self.dim}")


# --- layouts and outputs ------------------------------------------------------------------------------------------


def arranged(z: Tensor, takes: str) -> Tensor:
    """(..., D) in the layout that a layer takes."""
    if takes == "(N, D)":
        return z.reshape(-1, z.shape[-1])
    z = z if z.ndim > 2 else z[None]
    if takes != "(B, D, H, W)":
        z = z.flatten(1, -2)
    elif z.ndim == 3:
        z = z[:, :, None]
    return z if takes == "(B, T, D)" else z.movedim(-1, 1).contiguous()


def positions(values: Tensor, takes: str) -> Tensor:
    """A mask or indices (...) in the layout of the vectors that they belong to."""
    return arranged(values[..., None], takes).squeeze(1 if takes.startswith("(B, D") else -1)


def _back(z: Tensor, takes: str, shape: tuple[int, ...]) -> Tensor:
    return (z.movedim(1, -1) if takes.startswith("(B, D") else z).reshape(shape)


def leaves(raw: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors in tuples, mappings, dataclasses and NamedTuples, by the path that leads to each."""
    if isinstance(raw, Tensor):
        return {path: raw}
    if isinstance(raw, tuple | list):
        raw = dict(zip(getattr(raw, "_fields", range(len(raw))), raw, strict=True))
    inside = raw if isinstance(raw, Mapping) else vars(raw) if is_dataclass(raw) else {}
    found = [leaves(value, f"{path}.{key}".strip(".")) for key, value in inside.items()]
    return {name: leaf for some in found for name, leaf in some.items()}


def as_indices(leaf: Tensor, n: int) -> Tensor | None:
    """(N,) from integers of any shape with N elements, or from one-hot rows (..., K); None where it is neither."""
    if leaf.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8) and leaf.numel() == n:
        return leaf.reshape(-1).long()
    if leaf.ndim < 2 or leaf.shape[-1] < 2 or prod(leaf.shape[:-1]) != n:
        return None
    rows = leaf.detach().reshape(n, -1)
    hot = bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all())
    return rows.long().argmax(1) if hot else None


def state_of(layer: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those that are not saved too."""
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


class EachResult(TorchDispatchMode):
    """While it is on, ``look`` is called with every tensor that an operator makes or writes to."""

    def __init__(self, look: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.look = look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in leaves(made).values():
            self.look(leaf)
        return made


@torch.no_grad()
def alone(subject: Subject, z: Tensor) -> float:
    """The share of the other vectors' outputs that stay when one vector changes."""
    other = z.clone()
    other.view(-1, subject.dim)[z[..., 0].numel() // 2] += 10
    before, after = (subject.fresh(train=False)(x).z_q.reshape(-1, subject.dim) for x in (z, other))
    moved = (after - before).abs().amax(1) > 1e-3 * before.abs().max()
    moved[len(moved) // 2] = False
    return 1 - float(moved.double().mean())
