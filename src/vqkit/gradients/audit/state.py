"""Laws 3 and 17: whether the state decides the result, and whether it is saved and can be set."""

from __future__ import annotations

import io
from dataclasses import replace
from pickle import UnpicklingError

import torch
from torch import Tensor

from vqkit.gradients.audit.findings import Found, finding
from vqkit.gradients.audit.learning import apart
from vqkit.gradients.audit.subject import Subject


def _future(copy: Subject, z: Tensor, seed: int = 0) -> Tensor:
    """What evaluation gives, then the codebook after three steps, from one random state."""
    torch.manual_seed(seed)
    values = copy.fresh(train=False)(z).z_q.detach().reshape(-1, copy.dim)
    for _ in range(3):
        copy.learn(z)
    return torch.cat([values, copy.table()])


def law_03_deterministic(subject: Subject) -> Found:
    """Two copies give the same codes and learn the same from the same vectors, whatever the random state."""
    z = torch.randn(4, 16, subject.dim)
    one, other = (_future(subject.fresh(), z, seed) for seed in range(2))
    if torch.equal(one, other):
        return []
    drawn = not torch.equal(one[: -subject.codes], other[: -subject.codes])
    what = "evaluation gives other codes" if drawn else "training gives another codebook"
    return [finding("drawn", f"{what} under another seed of PyTorch's generator", "fault" if drawn else "hazard")]


def law_17_round_trip(subject: Subject) -> Found:
    """state_dict through torch.save, weights_only=True and a strict load: the same codes and the same next steps."""
    trained, z, file = subject.fresh(), torch.randn(4, 16, subject.dim), io.BytesIO()
    _future(trained, z)
    torch.save(trained.layer.state_dict(), file)
    file.seek(0)
    try:
        entries = torch.load(file, weights_only=True)
    except UnpicklingError:
        objects = [name for name, entry in trained.layer.state_dict().items() if not isinstance(entry, Tensor)]
        return [finding("pickle", f"torch.load with its default weights_only=True refuses {', '.join(objects)}")]
    loaded = subject.fresh() if subject.makes is None else replace(subject, layer=subject.makes()).fresh()
    loaded.layer.load_state_dict(entries, strict=True)
    after, resumed = _future(trained, z + 0.1), _future(loaded, z + 0.1)
    if torch.equal(after, resumed):
        return []
    same = torch.equal(after[: -subject.codes], resumed[: -subject.codes])
    what = "three steps give another codebook" if same else "evaluation gives other codes"
    return [finding("not saved", f"after a load {what} than without it")]


def law_17_strict(subject: Subject) -> Found:
    """A strict load refuses a state in which an entry is missing."""
    entries, taken = subject.layer.state_dict(), []
    for missing in entries:
        try:
            subject.fresh().layer.load_state_dict({k: v for k, v in entries.items() if k != missing}, strict=True)
        except (RuntimeError, KeyError):
            continue
        taken.append(missing)
    return [finding("lenient", f"a strict load takes a state without {', '.join(taken)}")] if taken else []


def law_17_set(subject: Subject) -> Found:
    """Codes that are written into the codebook stay: a step on vectors that are these codes moves none."""
    codes, copy = apart(subject)[1], subject.fresh()
    copy.as_table(copy.tensor.detach()).copy_(codes)
    copy.learn(codes[None])
    moved = float((copy.table() - codes).norm() / codes.norm())
    told = (
        f"codes written into {copy.codebook} alone move by {moved:.2g} of their length in a step on these very vectors"
    )
    return [finding("overwritten", told, "hazard")] if moved > 1e-2 else []


CHECKS = (law_03_deterministic, law_17_round_trip, law_17_strict, law_17_set)
