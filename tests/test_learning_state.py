"""What a step leaves in the state of a quantizer: usage, idle rows, faults, overflow, precision."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import vqkit
from tests.contract.trained import CODES, DIM, TOKENS, Model, array, changed, close, state
from tests.zoo import vectors
from vqkit import reference
from vqkit.functional.quantize import _without_faults

X = vectors(TOKENS, DIM, seed=5)


def ema(**slots) -> Model:
    return Model(
        vqkit.VectorQuantizer(DIM, CODES, **{"update": vqkit.EMA(), "start": vqkit.Normal(), "seed": 0, **slots})
    )


# --- attach -------------------------------------------------------------------------------------------------------


def test_usage_decays_as_computed_directly() -> None:
    vq, expected = ema(update=vqkit.Frozen()).vq, np.zeros(CODES)
    for seed in range(300):
        z = vectors(20, DIM, seed=seed)
        expected = 0.99 * expected + np.bincount(reference.nearest(array(z), array(vq.codebook)), minlength=CODES)
        vq.observe(z)
        vqkit.step(vq)
    close(vq.usage, expected, "usage")


def test_idle_rows_keep_their_bits_for_100000_steps() -> None:
    """n underflows on the way, and the code then learns as if new."""
    codes, n, rule = vectors(4, 2), torch.ones(4), vqkit.EMA(decay=0.99)
    codebook, counts = codes.clone(), torch.tensor([2.0, 0.0, 3.0, 0.0])
    for _ in range(100_000):
        before = n
        codebook, n = rule.step(codebook, n, counts, torch.zeros(4, 2), torch)
        if torch.equal(before, n):  # and so in every step from here on
            break
    assert torch.equal(codebook, codes)
    assert n[1] < 1e-30
    moved, n = rule.step(codebook, n, torch.tensor([0.0, 5.0, 0.0, 0.0]), torch.ones(4, 2), torch)
    close(moved[1], codes[1] + 0.2, "the code at the mean of its five vectors")


def test_vectors_that_are_not_finite_are_counted_apart() -> None:
    """Where the device cannot raise, they are in the first entry and in nothing else."""
    residual, flat = vectors(6, DIM).clone(), torch.zeros(3)
    residual[1, 2], residual[4, 0], residual[5, 1] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(_without_faults(flat, residual, None), torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool))
    assert flat.tolist() == [3, 0, 0]
    mask = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)  # a padded position may hold anything
    assert torch.equal(_without_faults(flat, residual, mask), torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool))
    assert flat.tolist() == [2, 0, 0]


def test_a_step_reports_vectors_that_were_not_finite() -> None:
    vq, clean = ema().vq, ema().vq
    for quantizer in (vq, clean):
        quantizer.observe(X)
    vq.collector.statistics.grad[0] = 2
    vqkit.step(clean)
    with pytest.warns(RuntimeWarning, match="2 vectors that reached the quantizer held NaN or infinity"):
        vqkit.step(vq)
    assert not changed(state(clean), state(vq))
    vqkit.step(vq)  # reported once


def test_finite_vectors_that_overflow_a_sum_leave_no_infinity() -> None:
    for z in (torch.full((TOKENS, DIM), 3e37), torch.full((TOKENS, DIM), 1e300, dtype=torch.float64)):
        vq = ema().vq
        vq.observe(z)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            vqkit.step(vq)
        assert all(torch.isfinite(tensor).all() for tensor in state(vq).values())


def test_a_frozen_quantizer_in_half_precision_counts_in_full() -> None:
    for low in (torch.float16, torch.bfloat16):
        vq = vqkit.VectorQuantizer(DIM, 2, update=vqkit.Frozen(), start=vqkit.KMeans(), seed=0)
        vqkit.start(vq, [X])
        vq = vq.to(low)
        vq(X.repeat(2000, 1).to(low).requires_grad_()).losses.total.backward()
        vqkit.step(vq)
        assert vq.usage.sum() == 2000 * TOKENS


def test_a_frozen_codebook_never_changes() -> None:
    try:
        vq = ema(update=vqkit.Frozen(), revival=vqkit.Reseed(after=1.0)).vq
    except ValueError:
        return
    before = vq.codebook.clone()
    for _ in range(10):
        vq.observe(before[:2].repeat(8, 1))
        vqkit.step(vq)
    assert torch.equal(vq.codebook, before)


def test_a_codebook_that_was_set_weighs_as_much_as_one_that_was_given() -> None:
    codes = 3 * vectors(CODES, DIM, seed=9)
    by_setting, given = ema().vq, ema(start=vqkit.Given(codes)).vq
    by_setting.set_codebook(codes)
    for vq in (by_setting, given):
        vq.observe(X)
        vqkit.step(vq)
    close(by_setting.codebook, given.codebook, "the codebook after one step")


def test_what_was_discarded_moves_nothing() -> None:
    model = ema()
    before = state(model)
    model(X).loss.backward()
    vqkit.discard(model)
    vqkit.step(model)
    assert not changed(before, state(model))
