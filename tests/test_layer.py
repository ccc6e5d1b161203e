"""The layer as people handle it: in place, with the wrong object in a slot, on no device at all."""

from __future__ import annotations

import pytest
import torch

import vqkit
from tests.zoo import vectors


@pytest.mark.parametrize("estimator", [vqkit.StraightThrough(), vqkit.RotationTrick()])
def test_the_codes_may_be_changed_in_place(estimator: vqkit.StraightThrough) -> None:
    """As a decoder does that begins with ReLU(inplace=True)."""
    gradients = []
    for change in (torch.relu, torch.relu_):
        vq = vqkit.VectorQuantizer(8, 16, estimator=estimator, start=vqkit.Normal(), seed=0)
        z = vectors(10, 2, 8).requires_grad_()
        z_q, _, losses = vq(z)
        (change(z_q).square().sum() + losses.total).backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"update": "ema"}, r"update is 'ema'; it must be an object such as EMA\(decay=0.99\)"),
        ({"update": vqkit.EMA}, "update is <class"),
        ({"estimator": vqkit.StraightThrough}, "estimator is <class"),
        ({"start": torch.zeros(2, 2)}, r"start is tensor.*Given\(array\)"),
        ({"revival": None}, "revival is None"),
    ],
)
def test_what_does_not_fit_a_slot_is_refused_at_once(slots: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        vqkit.VectorQuantizer(2, 2, **slots)


def test_on_the_meta_device() -> None:
    for start in (vqkit.Normal(), vqkit.KMeans()):
        with torch.device("meta"):
            vq = vqkit.VectorQuantizer(4, 8, start=start)
        assert vq.codebook.is_meta
        assert vqkit.VectorQuantizer(4, 8, start=start).to("meta").codebook.is_meta
    z_q, indices, _ = vqkit.VectorQuantizer(4, 8).to("meta")(torch.empty(3, 4, device="meta"))
    assert (z_q.shape, indices.shape) == ((3, 4), (3,))
