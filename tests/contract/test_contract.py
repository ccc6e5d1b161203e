"""Every law on every quantizer; and for each law a quantizer that breaks it, caught by name."""

from __future__ import annotations

import pytest
import torch

from tests.broken import BROKEN as BROKEN_VALUES
from tests.broken import CONTROL
from tests.broken_learning import BROKEN as BROKEN_LEARNING
from tests.contract import gradients, learning, state, values
from tests.contract.law import Broken, Law
from tests.zoo import ZOO, Case, vectors

LAWS: tuple[Law, ...] = (*values.LAWS, *gradients.LAWS, *learning.LAWS, *state.LAWS)
BROKEN: tuple[Broken, ...] = (*BROKEN_VALUES, *BROKEN_LEARNING)
BY_NAME = {law.name: law for law in LAWS}

NUMBERS = set(range(1, 22)) - {7}  # laws 7 and 22 are of residual quantizers and of compressed files

PAIRS = [pytest.param(law, case, id=f"{law.name}-{case.name}") for law in LAWS for case in ZOO if law.applies(case)]


@pytest.mark.parametrize(("law", "case"), PAIRS)
def test_law_holds(law: Law, case: Case) -> None:
    law.check(case)


@pytest.mark.parametrize("law", [pytest.param(law, id=law.name) for law in (*values.LAWS, *gradients.LAWS)])
def test_what_the_broken_are_made_from_holds(law: Law) -> None:
    law.check(CONTROL)


@pytest.mark.parametrize("broken", [pytest.param(b, id=f"{b.breaks}-{b.case.name}") for b in BROKEN])
def test_broken_is_caught_by_name(broken: Broken) -> None:
    law = BY_NAME[broken.breaks]
    assert law.applies(broken.case)
    with pytest.raises(AssertionError, match=rf"^law {law.number}:"):
        law.check(broken.case)


@pytest.mark.parametrize("broken", [pytest.param(b, id=f"{b.breaks}-{b.case.name}") for b in BROKEN])
def test_broken_is_a_quantizer_otherwise(broken: Broken) -> None:
    """What the contract rejects must be the fault itself, not a class that cannot be called."""
    vq = broken.case.make()
    z = vectors(6, 5, 8).requires_grad_()
    z_q, indices, losses = vq(z)
    (z_q.square().sum() + losses.total).backward()
    assert z_q.shape == z.shape
    assert indices.shape == (6, 5)
    assert torch.isfinite(losses.total)
    assert vq.encode(z).shape == (6, 5)
    assert vq.decode(indices).shape == z.shape


def test_every_law_is_tested_and_broken() -> None:
    assert {law.number for law in LAWS} == NUMBERS
    unbroken = {law.number for law in LAWS} - {BY_NAME[b.breaks].number for b in BROKEN}
    assert not unbroken, f"no quantizer in broken.py breaks {sorted(unbroken)}"


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(LAWS)
    assert len({case.name for case in ZOO}) == len(ZOO)
    assert len({broken.case.name for broken in BROKEN}) == len(BROKEN)
