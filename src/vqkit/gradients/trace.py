"""Which loss trains which part of a model, and how good the straight-through gradient is: measured, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vqkit.functional import nearest_codes
from vqkit.gradients.routes import Route, gradients, route_of
from vqkit.gradients.text import aligned
from vqkit.quantizers import ChannelsFirst, VectorQuantizer

if TYPE_CHECKING:
    from jaxtyping import Float

Group = nn.Module | Tensor | Sequence[Tensor]
_NEXT = 5  # codes after the chosen one that each vector is tried with
_VECTORS = 64  # of the batch, evenly spaced: each costs 5 evaluations of the loss
_SAID = {"zero": "0 on a path", "no path": "no path", "no parameters": "no parameters"}


class Quality(NamedTuple):
    """How well the gradient at z_q foretells what another code does: Pearson's correlation over ``changes`` trials."""

    correlation: float
    changes: int


@dataclass(frozen=True)
class Trace:
    """``routes[loss][group]``, ``cosines[group][loss, loss]`` where both flow, and the straight-through quality."""

    routes: dict[str, dict[str, Route]]
    cosines: dict[str, dict[tuple[str, str], float]]
    straight_through: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "routes": {loss: {g: r._asdict() for g, r in row.items()} for loss, row in self.routes.items()},
            "cosines": {g: {" / ".join(pair): c for pair, c in row.items()} for g, row in self.cosines.items()},
            "straight_through": self.straight_through and self.straight_through._asdict(),
        }

    def __str__(self) -> str:
        rows = [["gradient norm", *next(iter(self.routes.values()))]]
        for loss, row in self.routes.items():
            rows.append([loss, *(_SAID.get(r.kind, f"{r.norm:.4g}") for r in row.values())])
        lines = [aligned(rows)]
        for group, pairs in self.cosines.items():
            lines += [f"cosine at {group}: {a} and {b} {value:+.3f}" for (a, b), value in pairs.items()]
        if self.straight_through is not None:
            value, changes = self.straight_through
            lines.append(
                f"straight-through: correlation {value:.3f} with the measured change, {changes} changes of code"
            )
        return "\n".join(lines)


def trace(
    losses: Mapping[str, Tensor],
    model: nn.Module | Mapping[str, Group],
    *,
    z: Float[Tensor, "..."] | None = None,
    loss_of: Callable[[Tensor], Tensor] | None = None,
    codebook: Float[Tensor, "codes dim"] | None = None,
) -> Trace:
    """Prints and returns which loss reaches which group of parameters: ``|d loss / d group|``, and each zero's kind.

    A zero is ``no path`` where autograd's graph, walked from the loss, does not lead to the group; ``0 on a path``
    where it does and what arrives is exactly 0. Cosines are those of two losses' gradients at a group that both reach.

    With ``z``, what the quantizer was given, and ``loss_of``, the loss as a function of z_q in the shape of z, also the
    straight-through quality. The straight-through gradient g promises that taking code j for the chosen k changes the
    loss by ``g.(e_j - e_k)``; for 64 vectors, evenly spaced, each of the 5 next codes is tried, and the promise is
    correlated with what happened. ``loss_of`` runs 321 times with one random state.

    No gradient, statistic, buffer or random state is changed, and the losses' graphs are kept.

    Args:
        losses: scalars by name, already computed.
        model: groups are its children; or groups by name: modules, tensors (an activation too), sequences of tensors.
        z: (..., dim), or (batch, dim, ...) where the model's quantizer is ``ChannelsFirst`` or the codebook says so.
        loss_of: z_q to a scalar.
        codebook: (codes, dim); needed where ``model`` is not a module that holds one quantizer of vqkit.

    Raises:
        ValueError: a loss that is no scalar, or depends on nothing in the model; z without loss_of; no codebook.

    >>> import vqkit
    >>> model = vqkit.VQVAE(nn.Linear(9, 4), vqkit.VectorQuantizer(dim=4, codebook_size=8, seed=0), nn.Linear(4, 9))
    >>> x = torch.ones(5, 9)
    >>> x_hat, _, losses = model(x)
    >>> table = trace({"reconstruction": (x_hat - x).square().mean(), "codebook": losses.codebook}, model)
    ... # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
    gradient norm   encoder      quantizer    decoder
    reconstruction  ...          0 on a path  ...
    codebook        0 on a path  ...          no path
    >>> table.routes["codebook"]["decoder"].kind
    'no path'
    """
    result = measure(losses, model, z=z, loss_of=loss_of, codebook=codebook)
    print(result)
    return result


def measure(
    losses: Mapping[str, Tensor],
    model: nn.Module | Mapping[str, Group],
    *,
    z: Float[Tensor, "..."] | None = None,
    loss_of: Callable[[Tensor], Tensor] | None = None,
    codebook: Float[Tensor, "codes dim"] | None = None,
) -> Trace:
    """``trace`` without a word."""
    if not losses:
        raise ValueError('losses is empty: pass at least one, as in {"reconstruction": loss}.')
    groups = _groups(model)
    every = [tensor for tensors in groups.values() for tensor in tensors]
    arrived: dict[str, dict[str, list[Tensor | None]]] = {}
    with _unchanged(model):
        for name, loss in losses.items():
            _check_loss(name, loss)
            found = iter(gradients(loss, every))
            arrived[name] = {group: [next(found) for _ in tensors] for group, tensors in groups.items()}
            if all(gradient is None for row in arrived[name].values() for gradient in row):
                raise ValueError(
                    f"losses[{name!r}] depends on nothing in {', '.join(groups)}: compute it from this model's outputs."
                )
        quality = None
        if z is not None and loss_of is not None:
            quality = _quality(z, loss_of, _codes(model, codebook), _channels_first(model))
        elif (z is None) != (loss_of is None):
            raise ValueError("z and loss_of come together: z is what the quantizer was given, loss_of(z_q) the loss.")
    routes = {loss: {group: route_of(found) for group, found in row.items()} for loss, row in arrived.items()}
    return Trace(routes, _cosines(arrived, routes), quality)


def _groups(model: nn.Module | Mapping[str, Group]) -> dict[str, list[Tensor]]:
    named: Mapping[str, Group] = dict(model.named_children()) if isinstance(model, nn.Module) else model
    if isinstance(model, nn.Module):
        own = [p for p in model.parameters(recurse=False) if p.requires_grad]
        named = {**named, type(model).__name__: own} if own or not named else named
    groups = {}
    for name, group in named.items():
        tensors = (
            group.parameters() if isinstance(group, nn.Module) else [group] if isinstance(group, Tensor) else group
        )
        groups[name] = [tensor for tensor in tensors if tensor.requires_grad]
    if not any(groups.values()):
        raise ValueError(f"model ({type(model).__name__}) has nothing that requires a gradient: unfreeze a part of it.")
    return groups


def _check_loss(name: str, loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
        raise ValueError(f"losses[{name!r}] {what}; it must be a scalar tensor: take its mean.")
    if not loss.requires_grad:
        raise ValueError(
            f"losses[{name!r}] has no graph: it was detached or computed under no_grad. (Under EMA the codebook loss "
            "is a report only: leave it out.)"
        )


def _cosines(
    arrived: dict[str, dict[str, list[Tensor | None]]], routes: dict[str, dict[str, Route]]
) -> dict[str, dict[tuple[str, str], float]]:
    cosines: dict[str, dict[tuple[str, str], float]] = {}
    for group in next(iter(routes.values())):
        live = [loss for loss in routes if routes[loss][group].kind == "flows"]
        for a, b in combinations(live, 2):
            pairs = zip(arrived[a][group], arrived[b][group], strict=True)
            dot = sum(float((x.double() * y.double()).sum()) for x, y in pairs if x is not None and y is not None)
            value = dot / (routes[a][group].norm * routes[b][group].norm)
            cosines.setdefault(group, {})[a, b] = value
    return cosines


def _quality(z: Tensor, loss_of: Callable[[Tensor], Tensor], codes_KD: Tensor, channels_first: bool) -> Quality:
    dim = codes_KD.shape[1]
    axis = 1 if z.ndim > 2 and z.shape[1] == dim and (channels_first or z.shape[-1] != dim) else -1
    if z.shape[axis] != dim:
        raise ValueError(f"z has shape {tuple(z.shape)}; its last axis, or axis 1, must be dim={dim} long.")
    last = z.detach().movedim(axis, -1)
    vectors_ND = last.reshape(-1, dim)

    def evaluate(q_ND: Tensor) -> Tensor:
        torch.manual_seed(0)  # dropout and noise fall the same way each time; the caller's state is put back
        loss = loss_of(q_ND.view(last.shape).movedim(-1, axis).to(z.dtype))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_of returned {type(loss).__name__}; it must return a scalar tensor.")
        return loss

    tried = torch.linspace(0, len(vectors_ND) - 1, min(_VECTORS, len(vectors_ND))).round().long()
    q_ND = codes_KD[nearest_codes(vectors_ND, codes_KD)]
    wide = codes_KD.cpu().double()  # the chosen code comes first in this order of 64 rows, then the next ones
    order = torch.cdist(vectors_ND[tried].cpu().double(), wide).argsort(1)[:, 1 : 1 + _NEXT]
    with torch.enable_grad():
        at = q_ND.clone().requires_grad_()
        (slope_ND,) = torch.autograd.grad(evaluate(at), at)
    wide_q = q_ND.cpu().double()
    promised, happened = [], []
    with torch.no_grad():
        before = float(evaluate(q_ND))
        for n, others in zip(tried.tolist(), order.tolist(), strict=True):
            for j in others:
                moved = q_ND.clone()
                moved[n] = codes_KD[j]
                promised.append(float(slope_ND[n].cpu().double() @ (wide[j] - wide_q[n])))
                happened.append(float(evaluate(moved)) - before)
    pairs = torch.tensor([promised, happened], dtype=torch.float64)
    return Quality(float(torch.corrcoef(pairs)[0, 1]), len(promised))


def _modules(model: nn.Module | Mapping[str, Group]) -> Iterator[nn.Module]:
    for group in [model] if isinstance(model, nn.Module) else model.values():
        if isinstance(group, nn.Module):
            yield from group.modules()


def _codes(model: nn.Module | Mapping[str, Group], codebook: Tensor | None) -> Tensor:
    found = {id(m): m.codebook for m in _modules(model) if isinstance(m, VectorQuantizer)}
    if codebook is None and len(found) != 1:
        raise ValueError(
            f"model holds {len(found)} quantizers of vqkit: pass codebook=, (codes, dim), of the one meant."
        )
    return (next(iter(found.values())) if codebook is None else codebook).detach()


def _channels_first(model: nn.Module | Mapping[str, Group]) -> bool:
    return any(isinstance(module, ChannelsFirst) for module in _modules(model))


@contextmanager
def _unchanged(model: nn.Module | Mapping[str, Group]) -> Iterator[None]:
    """Random state and buffers (running means, what counts calls) are afterwards as they were.

    Copies stand in meanwhile: a graph keeps the buffers that it saw and refuses to run once they were written to.
    """
    kept = [(m._buffers, name, buffer) for m in _modules(model) for name, buffer in m.named_buffers(recurse=False)]
    with torch.random.fork_rng():
        try:
            for place, name, buffer in kept:
                place[name] = buffer.clone()
            yield
        finally:
            for place, name, buffer in kept:
                place[name] = buffer
