"""The audit of how a codebook learns, starts, revives and is saved: laws 3 and 11 to 17."""

from __future__ import annotations

import pytest

from tests.audited import audited, number
from tests.broken_learning import BROKEN
from vqkit.gradients.audit import learning, state

CHECKS = (*learning.CHECKS, *state.CHECKS)
# One process sees no ranks, an audit compiles nothing, and what a buffer called usage means is the layer's affair;
# NaN is for the checks of values.
NOT_HERE = {"statistics-of-one-rank", "cached-group", "breaks-graph", "averages-usage", "nan-in-every-row"}


@pytest.mark.parametrize(
    "broken", [b for b in BROKEN if b.case.name not in NOT_HERE], ids=lambda broken: broken.case.name
)
def test_what_breaks_a_law_of_learning_is_found_with_this_law_first(broken):
    report = audited(broken.case.make(), CHECKS, dim=8)
    assert report.broken, report.kept
    assert report.broken[0].law.number == number(broken.breaks), report.broken


def test_what_one_process_cannot_see_is_not_told():
    for broken in BROKEN:
        if broken.case.name in {"cached-group", "averages-usage", "breaks-graph"}:
            assert not audited(broken.case.make(), CHECKS, dim=8).broken
