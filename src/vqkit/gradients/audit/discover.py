"""What a layer takes, what its outputs mean and where its codebook is: told, or found out by trying."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from vqkit.codebooks.starts import DataStart
from vqkit.gradients.audit.subject import COMPOSED, LAYOUTS, Subject, alone, arranged, as_indices, leaves, state_of
from vqkit.gradients.routes import edges_of, reached
from vqkit.quantizers import VectorQuantizer, start

_TAKES = {
    "channels last": ("(B, T, D)", "(N, D)"),
    "channels first": ("(B, D, H, W)", "(B, D, T)"),
    **{layout: (layout,) for layout in LAYOUTS},
}

_ENCODE = ("encode", "get_codebook_indices", "get_indices")
_DECODE = ("decode", "get_output_from_indices", "get_codes_from_indices", "get_codebook_entry", "decode_code")


@dataclass(frozen=True)
class Conventions:
    """What the audit is told about a layer; what is None it finds out.

    ``takes``: "channels last", "channels first", or one of "(B, T, D)", "(N, D)", "(B, D, H, W)", "(B, D, T)".
    ``z_q``, ``indices`` and ``loss`` (what one adds to the objective) are paths into what the layer returns: ``"0"``,
    ``"2.1"``, ``"losses.total"``. ``codebook`` is the name of a parameter or buffer: ``"embedding.weight"``.
    """

    takes: str | None = None
    z_q: str | None = None
    indices: str | None = None
    loss: str | None = None
    codebook: str | None = None

    def __post_init__(self) -> None:
        if self.takes is not None and self.takes not in _TAKES:
            raise ValueError(f"takes is {self.takes!r}; it must be one of {', '.join(map(repr, _TAKES))}.")


def find_out(
    layer: nn.Module, dim: int, tell: Conventions, makes: Callable[[], nn.Module] | None = None
) -> tuple[Subject, dict[str, str]]:
    """The subject, and the conventions in words.

    Raises:
        ValueError: the layer takes no vectors of this dim, needs CUDA, is no quantizer, or has not what was told.
    """
    subject, z = _layout(Subject(layer, dim, "(B, T, D)", "", makes=makes), tell)
    subject = _outputs(subject, tell, z)
    found = _codebook(subject, tell.codebook, z)
    if found is None and tell.codebook is not None:
        raise ValueError(f"codebook is {tell.codebook!r}, but a change of its rows does not change z_q.")
    if found is None and subject.indices is None:
        raise ValueError(
            f"layer ({type(layer).__name__}) is no vector quantizer of dim={dim}: it returns no index for each vector, "
            f"and no table's row moves what it returns. {_several(subject, z)}"
        )
    encoder, decoder = (next((n for n in names if hasattr(layer, n)), None) for names in (_ENCODE, _DECODE))
    subject = replace(found or subject, encoder=encoder, decoder=decoder)
    subject = replace(subject, composed=found is not None and _composed(subject, z))
    with suppress(Exception):
        subject.fresh()(z, torch.ones_like(z[..., 0]) > 0)
        subject = replace(subject, masks="mask" in inspect.signature(layer.forward).parameters)
    return subject, _in_words(subject)


def _several(subject: Subject, z: Tensor) -> str:
    """What may help with a layer that seems to be no quantizer."""
    for path, leaf in leaves(subject.fresh().layer(arranged(z, subject.takes))).items():
        each, rest = divmod(leaf.numel(), z[..., 0].numel())
        if not leaf.is_floating_point() and each > 1 and not rest:
            return f"At {path!r} it has {each} integers for each: audit one of the quantizers that it is made of."
    return "If it is one, tell=Conventions(indices=..., codebook=...) helps."


# --- what it takes ------------------------------------------------------------------------------------------------


def _layout(bare: Subject, tell: Conventions) -> tuple[Subject, Tensor]:
    """The layout in which a vector's output depends on no other vector, or depends least; and vectors for it."""
    name = type(bare.layer).__name__
    said: dict[str, str] = {}
    tried: list[tuple[Subject, Tensor] | None] = []
    for takes in _TAKES[tell.takes] if tell.takes else LAYOUTS:
        z = torch.randn(*_lengths(bare, 2 + (takes == "(B, D, H, W)")), bare.dim)
        given, layer, waiting = arranged(z, takes), bare.fresh().layer, _unstarted(bare.fresh().layer)
        try:
            if waiting is not None:
                most = max(size for tensor in state_of(layer).values() for size in tensor.shape)  # K, or more
                many = arranged(torch.randn(1, most, bare.dim), takes)
                start(layer, [many])  # quantizers of vqkit; all others in a training step
                layer(many)
            found = leaves(replace(bare, layer=layer).fresh(train=False).layer(given))
        except Exception as error:
            text = " ".join(f"{error}".split())[:200]
            said.setdefault(text or type(error).__name__, takes)
            continue
        like_z = [p for p, leaf in found.items() if leaf.is_floating_point() and leaf.shape == given.shape]
        paths = [p for p in like_z if not torch.equal(found[p], given) and tell.z_q in (None, p)]
        subject = replace(bare, layer=layer, waiting=waiting, takes=takes, z_q=paths[0] if paths else "")
        tried += [(subject, z)] if paths else [None]
    told = "; ".join(f"{takes}: {text}" for text, takes in said.items())
    if any(tried):
        return max(filter(None, tried), key=lambda pair: alone(*pair))
    if tried:
        at = "" if tell.z_q is None else f" at {tell.z_q!r}"
        raise ValueError(
            f"layer ({name}) is no vector quantizer: it returns nothing of the input's shape{at} but the input."
        )
    if "cuda" in told.lower() or "nvidia" in told.lower():
        raise ValueError(f"layer ({name}) needs CUDA, and an audit runs on the CPU. It said: {told}")
    raise ValueError(
        f"layer ({name}) takes no vectors of dim={bare.dim}: dim is the length of its vectors. It said: {told}"
    )


def _unstarted(layer: nn.Module) -> nn.Module | None:
    """The layer, if a flag says that its codebook has not started. Quantizers of vqkit are put back to that state."""
    for module in layer.modules():
        if isinstance(module, VectorQuantizer) and isinstance(module.start, DataStart):
            entries = module.state_dict()
            module.load_state_dict({**entries, "codebook": 0 * entries["codebook"], "started": 0 * entries["started"]})
    flags = [tensor for name, tensor in state_of(layer).items() if "init" in name or "start" in name]
    return layer if any(flag.numel() == 1 and not bool(flag) for flag in flags) else None


def _lengths(bare: Subject, count: int) -> tuple[int, ...]:
    """Lengths such that nothing has the shape of something else by chance: K may equal N or D."""
    taken = {bare.dim, *(size for tensor in state_of(bare.layer).values() for size in tensor.shape)}
    every = combinations((3, 5, 7, 11, 13, 17, 19, 23), 3)
    a, b, c = next(((a, b, c) for a, b, c in every if not taken & {a, b, c, b * c, a * b * c}), (29, 31, 37))
    return (a, b * c) if count == 2 else (a, b, c)


# --- what its outputs mean ----------------------------------------------------------------------------------------


def _outputs(subject: Subject, tell: Conventions, z: Tensor) -> Subject:
    copy, z = subject.fresh(), z.clone().requires_grad_()
    found = leaves(copy.layer(arranged(z, subject.takes)))
    for path in (tell.indices, tell.loss):
        if path is not None and path not in found:
            raise ValueError(f"the layer returns nothing at {path!r}; it has {', '.join(map(repr, found))}.")
    n, ends = z[..., 0].numel(), [z, *(p for p in copy.layer.parameters() if p.requires_grad)]
    marks = [p for p, leaf in found.items() if p != subject.z_q and as_indices(leaf, n) is not None]
    indices = tell.indices or min(marks, key=lambda path: found[path].is_floating_point(), default=None)
    losses = {
        path: leaf.mean()  # a scalar, or one for each element of the batch
        for path, leaf in found.items()
        if leaf.is_floating_point()
        and (leaf.numel() == 1 or leaf.shape == z.shape[:1])
        and any(reached(leaf.sum(), ends))
    }
    for path, leaf in found.items() if not losses else ():
        like_z = leaf.is_floating_point() and leaf.numel() in (n, z.numel()) and path != subject.z_q
        if like_z and bool((leaf >= 0).all()) and any(reached(leaf.sum(), ends)):
            shape = tuple(leaf.shape)
            raise ValueError(f"the layer's loss at {path!r} has shape {shape}; it must be a scalar: take its mean.")
    named = [path for path in losses if path.rpartition(".")[2] in ("total", "loss")]
    own = {path: edges_of(loss)[0].target for path, loss in losses.items()}  # each stands behind its mean
    behind = {path: {edge.target for edge in edges_of(loss)} for path, loss in losses.items()}
    sums = [path for path in losses if len(losses) > 1 and set(own.values()) <= behind[path]]  # all were added
    total = ([tell.loss] if tell.loss else named or sums)[:1] or losses
    return replace(subject, indices=indices, losses=tuple({**losses, **dict.fromkeys(total)}), total=tuple(total))


# --- where its codebook is ----------------------------------------------------------------------------------------


def _codebook(subject: Subject, told: str | None, z: Tensor) -> Subject | None:
    """With the table whose row k (or column) moves z_q where k was chosen and nowhere else.

    (Values do not tell: the averages that are kept beside a codebook equal it at first.)
    """
    state = state_of(subject.layer)
    if told is not None and told not in state:
        raise ValueError(f"the layer has no parameter or buffer {told!r}; it has {', '.join(map(repr, state))}.")
    for name, tensor in state.items() if told is None else [(told, state[told])]:
        if tensor.ndim >= 2 and tensor.shape[-2:].numel() == tensor.numel() and tensor.is_floating_point():
            for turned in (False, True):
                there = replace(subject, codebook=name, turned=turned)
                if tensor.shape[-2 if turned else -1] == subject.dim and _makes_z_q(there, z, told is not None):
                    return there
    return None


@torch.no_grad()
def _makes_z_q(subject: Subject, z: Tensor, anywhere: bool) -> bool:
    first, second = subject.fresh(train=False), subject.fresh(train=False)
    torch.manual_seed(0)
    before = first(z)
    k = int(before.indices.flatten().mode().values)
    if int(before.indices.max()) >= subject.codes:
        return False
    second.rows[k] += 0.05 * second.rows.std()
    torch.manual_seed(0)  # what a layer draws is drawn alike in both
    after = second(z)
    moved, same = (after.z_q - before.z_q).abs().mean(-1), after.indices == before.indices
    there, elsewhere = moved[same & (before.indices == k)], moved[same & (before.indices != k)]
    if anywhere:
        return bool(moved.any())
    if not len(there) or (not len(elsewhere) and subject.codes > 1):
        return False
    # Medians, because a layer that learns in evaluation moves a few others too.
    return float(there.median()) > 10 * (float(elsewhere.median()) if len(elsewhere) else 0)


@torch.no_grad()
def _composed(subject: Subject, z: Tensor) -> bool:
    """Whether z_q is no row of the table, and yet stays where z moves a little: rows projected, or added up."""
    copy, step = subject.fresh(train=False), 1e-3 * torch.randn_like(z)
    out, moved = copy.fresh(train=False)(z), copy.fresh(train=False)(z + step).z_q
    off = (out.z_q - copy.rows[out.indices]).norm(dim=-1).median() / out.z_q.norm(dim=-1).median()
    return float(off) > 1e-3 and float((moved - out.z_q).norm(dim=-1).median()) < 0.01 * float(
        step.norm(dim=-1).median()
    )


def _in_words(subject: Subject) -> dict[str, str]:
    held = f"not found: no table has rows of length {subject.dim} that move z_q where they were chosen, and only there"
    if subject.codebook is not None:
        kind = "a parameter" if subject.learnable else "a buffer"
        held = f"{subject.codebook}, {tuple(subject.tensor.shape)}, {kind}"
    return {
        "takes": subject.takes,
        "z_q": (subject.z_q or "all that is returned") + (f", {COMPOSED}" if subject.composed else ""),
        "indices": subject.indices
        or "not returned: the code that z_q is" + (" nearest to" if subject.composed else ""),
        "losses": ", ".join(subject.losses) or "none",
        "to be added": " + ".join(subject.total) or "nothing",
        "codebook": held,
        "encodes by": subject.encoder or "no method",
        "decodes by": subject.decoder or "no method",
        "mask": "mask=" if subject.masks else "none",
        "start": "from data: what is not about the start was measured after it" if subject.waiting else "as built",
    }
