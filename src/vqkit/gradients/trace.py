"""Which loss trains which part of a model, and how good the straight-through gradient is: measured, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vqkit.gradients import kept
from vqkit.gradients.quality import straight_through_quality
from vqkit.gradients.routes import edges_of, gradients, real, route_of
from vqkit.gradients.table import Route, Trace
from vqkit.quantizers import ChannelsFirst, VectorQuantizer

if TYPE_CHECKING:
    from jaxtyping import Float

Group = nn.Module | Tensor | Sequence[Tensor]


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
    where it does and what arrives is exactly 0. (A custom function and a compiled graph are one node: what is not
    connected inside them is 0 on a path too, as from the reconstruction to our codebook.) Cosines are those of two
    losses' gradients at a group that both reach.

    With ``z``, what the quantizer was given, and ``loss_of``, the loss as a function of z_q in the shape of z, also the
    straight-through quality. The straight-through gradient g promises that taking code j for the chosen k changes the
    loss by ``g.(e_j - e_k)``; for 64 vectors, evenly spaced, each of the 5 next codes is tried, and the promise is
    correlated with what happened. ``loss_of`` runs up to 322 times, each from the same random state.

    No gradient of a leaf, statistic, buffer of ``model`` or random state is changed; graphs are kept.
    Each loss takes the memory of one copy of the gradients.
    Hooks run as in any backward pass; that of ``retain_grad()`` too, on tensors that are named neither in ``model`` nor
    as ``z``.

    Args:
        losses: scalars by name, already computed.
        model: groups are its children; or groups by name: modules, tensors (an activation too), sequences of tensors.
        z: (..., dim); or (batch, dim, ...) where the last axis has another length, or the model has ``ChannelsFirst``.
        loss_of: z_q to a scalar in float32 or wider, since one code changes a loss by little.
        codebook: (codes, dim); needed where ``model`` is not a module that holds one quantizer of vqkit.

    Raises:
        ValueError: a loss that is no scalar, has no graph (any more) or depends on nothing in the model; z without
            loss_of; no codebook, or more than one.

    >>> import torch, vqkit
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
    if not isinstance(losses, Mapping) or not losses:
        raise ValueError('losses must name at least one, as in {"reconstruction": loss}.')
    groups = _groups(model)
    every = [tensor for tensors in groups.values() for tensor in tensors]
    arrived: dict[str, dict[str, list[Tensor | None]]] = {}
    with _unchanged(model, every if z is None else [*every, z]):
        for name, loss in losses.items():
            _check_loss(name, loss)
            try:
                found = iter(gradients(loss, every))
            except RuntimeError as error:
                if not any(sign in str(error) for sign in ("second time", "inplace operation")):
                    raise
                raise ValueError(
                    f"losses[{name!r}] has lost its graph: trace before optimizer.step(), and before backward() or "
                    "with backward(retain_graph=True)."
                ) from error
            arrived[name] = {group: [next(found) for _ in tensors] for group, tensors in groups.items()}
            if all(gradient is None for row in arrived[name].values() for gradient in row):
                raise ValueError(
                    f"losses[{name!r}] depends on nothing in {', '.join(groups)}: compute it from this model's outputs."
                )
        quality = None
        if z is not None and loss_of is not None:
            codes = _codes(model, codebook)
            quality = straight_through_quality(z, loss_of, codes, _channels_first(z, codes.shape[1], model))
        elif (z is None) != (loss_of is None):
            raise ValueError("z and loss_of come together: z is what the quantizer was given, loss_of(z_q) the loss.")
    routes = {loss: {group: route_of(found) for group, found in row.items()} for loss, row in arrived.items()}
    return Trace(routes, _cosines(arrived, routes), quality)


def _groups(model: nn.Module | Mapping[str, Group]) -> dict[str, list[Tensor]]:
    named: Mapping[str, Group]
    if isinstance(model, nn.Module):
        inner = model
        while len(children := dict(inner.named_children())) == 1 and not _own(inner):
            (inner,) = children.values()  # DataParallel, a compiled model: what they wrap is meant
        named = {**children, **({type(inner).__name__: own} if (own := _own(inner)) else {})}
    elif isinstance(model, Mapping):
        named = model
    else:
        raise ValueError(f"model is a {type(model).__name__}; it must be a torch.nn.Module, or groups by name.")
    groups = {}
    for name, group in named.items():
        listed = [group] if isinstance(group, Tensor) else group
        tensors = list(group.parameters()) if isinstance(group, nn.Module) else listed
        if not isinstance(tensors, Sequence) or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError(f"model[{name!r}] must be a module, a tensor or a sequence of tensors.")
        groups[name] = [tensor for tensor in tensors if tensor.requires_grad]
    if not any(groups.values()):
        raise ValueError(f"model ({type(model).__name__}) has nothing that requires a gradient: unfreeze a part of it.")
    return groups


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]


def _check_loss(name: str, loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
        raise ValueError(f"losses[{name!r}] {what}; it must be a scalar tensor: take its mean.")
    if any("CheckpointFunction" in edge.target.name() for edge in edges_of(loss)):
        raise ValueError(
            f"losses[{name!r}] passed a reentrant activation checkpoint, which hides its parameters from the graph: "
            "pass use_reentrant=False to torch.utils.checkpoint."
        )
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
            dot = sum(float(real(x) @ real(y)) for x, y in pairs if x is not None and y is not None)
            cosines.setdefault(group, {})[a, b] = dot / (routes[a][group].norm * routes[b][group].norm)
    return cosines


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
    codes = next(iter(found.values())) if codebook is None else codebook
    if not isinstance(codes, Tensor) or codes.ndim != 2:
        raise ValueError("codebook must be a tensor of shape (codes, dim): of an embedding its weight.")
    return codes.detach()


def _channels_first(z: Tensor, dim: int, model: nn.Module | Mapping[str, Group]) -> bool:
    if z.ndim < 3 or z.shape[1] != dim:
        return False
    if z.shape[-1] == dim and not any(isinstance(module, VectorQuantizer) for module in _modules(model)):
        raise ValueError(
            f"z has shape {tuple(z.shape)}, in which two axes are {dim} long: pass z as (vectors, {dim}), and let "
            "loss_of give z_q its shape."
        )
    return z.shape[-1] != dim or any(isinstance(module, ChannelsFirst) for module in _modules(model))


@contextmanager
def _unchanged(model: nn.Module | Mapping[str, Group], named: Sequence[Tensor]) -> Iterator[None]:
    """Random state, buffers (running means, what counts calls) and retained gradients are afterwards as they were.

    Copies stand in meanwhile: a graph keeps the buffers that it saw and refuses to run once they were written to.
    """
    buffers = [(m._buffers, name, buffer) for m in _modules(model) for name, buffer in m.named_buffers(recurse=False)]
    retained = [(t, None if t.grad is None else t.grad.clone()) for t in named if t.retains_grad]
    with kept.random_state():
        try:
            for place, name, buffer in buffers:
                place[name] = buffer.clone()
            yield
        finally:
            for place, name, buffer in buffers:
                place[name] = buffer
            for tensor, gradient in retained:
                tensor.grad = gradient
