"""Gradients and learning from vectors in half precision: by ``reference.py``, rounded where they are half."""

from __future__ import annotations

import numpy as np
import pytest

import vqkit
from tests.frameworks.adapter import Adapter
from tests.frameworks.cases import BITS, D, K, N, close, normal, rounded
from vqkit import reference

ESTIMATORS = {
    "straight-through": (vqkit.StraightThrough(), reference.straight_through),
    "rotation": (vqkit.RotationTrick(), reference.rotation_trick),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_half_precision(framework: Adapter, estimator: str, half: str) -> None:
    """Three roundings at most: what the estimator gives, what the commitment does, and their sum.

    The estimator's is between z and z_q, which is the code in half precision; the losses see the code itself.
    """
    codes, z, g = normal(K, D, seed=1), rounded(2 * normal(N, D), half), rounded(normal(N, D, seed=2), half)
    slot, pull_back = ESTIMATORS[estimator]
    # So large a commitment that its gradient is of the size of the other.
    found = framework.make(codes, estimator=slot, commitment=100.0).gradients(z, g, cast=half)
    indices = reference.nearest(z, codes)
    committed, of_codes = reference.losses_gradient(z, codes, indices, 100.0)
    through = pull_back(*(x.astype(np.float64) for x in (g, z, rounded(codes, half)[indices])))
    rounding = 2.0 ** -(BITS[half] + 1) * (abs(through) + abs(committed) + abs(through + committed))
    off = abs(found.z - (through + committed)) - rounding
    assert off.max() <= 1e-5, f"the gradient of z is off by {off.max():.1e} more than its roundings"
    close(found.codes, of_codes, "float32", "the gradient of the codebook", terms=N)


def test_a_step_of_the_average_from_half_precision_is_float32(framework: Adapter, half: str) -> None:
    codes, z = normal(K, D, seed=1), rounded(2 * normal(N, D), half)
    vq = framework.make(codes, update=vqkit.EMA(0.9))
    vq.learn(z, cast=half)
    counts, sums = reference.statistics(z, codes, reference.nearest(z, codes))
    codebook, n = reference.ema(codes, np.ones(K), counts, sums, 0.9)
    state = vq.state()
    assert state["codebook"].dtype == state["n"].dtype == np.float32
    close(state["codebook"], codebook, "float32", "the codebook", terms=N)
    close(state["n"], n, "float32", "n")
    assert (state["idle"] == np.where(counts > 0, 0, N)).all()
