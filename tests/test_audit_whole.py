"""The whole audit, as a user calls it: the right law first on what is broken, and nothing on what is right."""

from __future__ import annotations

import pytest

import vqkit
from tests.audited import number
from tests.broken import BROKEN as BROKEN_VALUES
from tests.broken_learning import BROKEN as BROKEN_LEARNING
from tests.contract.law import Broken
from tests.plain_layers import LAYERS
from tests.zoo import ZOO, Case

# Faults that one process, without a compiler, cannot see from outside: of ranks, of graphs, of what a buffer means.
UNSEEN = {"statistics-of-one-rank", "cached-group", "breaks-graph", "averages-usage"}


@pytest.mark.parametrize("broken", BROKEN_VALUES, ids=lambda broken: broken.case.name)
def test_every_broken_quantizer_is_found_with_the_right_law_first(broken: Broken) -> None:
    report = vqkit.audit(broken.case.make(), dim=8)
    assert report.broken[0].law.number == number(broken.breaks), report


@pytest.mark.parametrize(
    "broken", [b for b in BROKEN_LEARNING if b.case.name not in UNSEEN], ids=lambda broken: broken.case.name
)
def test_so_is_every_fault_of_learning_that_can_be_seen_from_outside(broken: Broken) -> None:
    report = vqkit.audit(broken.case.make(), dim=8)
    assert report.broken[0].law.number == number(broken.breaks), report


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_nothing_is_found_in_the_zoo(case: Case) -> None:
    assert vqkit.audit(case.make(), dim=8).broken == ()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_plain_layers_have_no_fault(layer: type) -> None:
    report = vqkit.audit(layer)
    assert report.ok, report
