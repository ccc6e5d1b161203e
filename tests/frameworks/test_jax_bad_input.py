"""What does not fit is refused by name; what only a trace can meet shows itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vqkit
import vqkit.jax
from tests.frameworks.cases import normal


def codebook_of(codes: np.ndarray) -> vqkit.jax.Codebook:
    given = vqkit.Given(codes)
    return vqkit.jax.init(jax.random.key(0), codebook_size=len(codes), dim=codes.shape[1], start=given)


def test_not_finite_under_a_trace() -> None:
    z, codebook = normal(6, 4), codebook_of(normal(6, 4, seed=1))
    z[1, 2], z[3, 0], z[5, 1] = np.nan, np.inf, np.nan
    mask = np.arange(6) != 5
    z_q, indices, losses, statistics = jax.jit(vqkit.jax.quantize)(codebook, z, mask=mask)
    assert np.isnan(z_q).all(1).tolist() == [False, True, False, True, False, False]
    assert indices[jnp.array([1, 3, 5])].tolist() == [0, 0, -1] and np.isnan(losses.total)
    assert int(statistics.faulty) == 2 and float(statistics.counts.sum()) == 3 and np.isfinite(statistics.sums).all()
    with pytest.raises(ValueError, match=r"z holds NaN or infinity in 2 of 6 vectors \(the first is vector 1 of"):
        vqkit.jax.quantize(codebook, z, mask=mask)
    with pytest.raises(ValueError, match="z holds NaN"):  # eager differentiation sees values too
        jax.grad(lambda z: vqkit.jax.quantize(codebook, z).loss)(z)
    with pytest.raises(ValueError, match="codes holds NaN or infinity in row 2; every code must be finite"):
        vqkit.jax.nearest_codes(jnp.zeros((1, 4)), codebook.codes.at[2, 1].set(np.nan))


def quantize(z: object, **given: object) -> None:
    vqkit.jax.quantize(jnp.zeros((6, 4)), z, **given)  # type: ignore[arg-type]


def statistics_of(codes: int) -> vqkit.jax.Statistics:
    """As `quantize` returns them with dimension 4 and no sample."""
    return vqkit.jax.Statistics(*map(jnp.zeros, [(codes,), (codes, 4), (), (0, 4), (0,)]))


def update(**given: object) -> None:
    vqkit.jax.update(codebook_of(normal(6, 4)), statistics_of(6), **given)  # type: ignore[arg-type]


def init(**given: object) -> None:
    vqkit.jax.init(jax.random.key(0), **{"codebook_size": 8, "dim": 4, **given})  # type: ignore[arg-type]


def look_up(indices: list) -> None:
    vqkit.jax.look_up(jnp.zeros((3, 2)), jnp.array(indices))


Z = np.zeros((2, 4), np.float32)
REFUSED: dict[str, tuple[Callable, str]] = {
    "a dim that does not match": (lambda: quantize(jnp.zeros((2, 5))), r"z has shape \(2, 5\), but the codes have 4"),
    "integers": (
        lambda: quantize(jnp.zeros((2, 4), int)),
        r"z has dtype int\d+; it must be floating: convert it with z",
    ),
    "no table": (lambda: vqkit.jax.nearest_codes(Z, Z[0]), r"codes has shape \(4,\); it must be \(codes, dim\)"),
    "a mask of numbers": (
        lambda: quantize(Z, mask=jnp.ones(2)),
        r"mask has .*; for z of shape \(2, 4\) it must be \(2,\)",
    ),
    "a class": (lambda: quantize(Z, estimator=vqkit.StraightThrough), "must be an object such as StraightThrough()"),
    "commitment": (lambda: quantize(Z, commitment=-1.0), "commitment is -1.0; it must be finite and not negative"),
    "a negative sample": (lambda: quantize(Z, sample=-1), "sample is -1; it must be 0 or more"),
    "an unknown update": (lambda: update(rule="ema"), r"rule is 'ema'; it must be an object such as EMA\(decay=0.99\)"),
    "an unknown revival": (lambda: update(revival=None), r"revival is None; it must be an object such as Reseed\(\)"),
    "revival of the frozen": (
        lambda: update(rule=vqkit.Frozen(), revival=vqkit.Reseed(0.5, 6)),
        r"revival is Reseed\(after=0.5, at_most=6\), which moves codes, but rule=Frozen\(\) never does",
    ),
    "revival without vectors": (
        lambda: update(revival=vqkit.Reseed(0.5, 6)),
        "statistics hold 0: call .*sample=6",
    ),
    "others' statistics": (
        lambda: vqkit.jax.update(codebook_of(Z), statistics_of(3)),
        r"statistics are of 3 codes of dimension 4, but codebook has shape \(2, 4\)",
    ),
    "codes for a codebook": (
        lambda: vqkit.jax.update(jnp.asarray(Z), statistics_of(2)),
        r"codebook is a ArrayImpl; update takes a Codebook: .* pass codebook._replace\(codes=codes\)",
    ),
    "an array to start from": (lambda: init(start=Z), r"start is ndarray; vqkit.jax starts from .* Given\(array\)"),
    "no codes": (lambda: init(codebook_size=0), "codebook_size is 0; it must be at least 1"),
    "a start from data": (lambda: init(start=vqkit.KMeans()), "For k-means cluster encoder outputs"),
    "another shape": (lambda: init(start=vqkit.Given(Z)), r"array .* must be \(8, 4\): set codebook_size=2 and"),
    "an index too high": (
        lambda: look_up([0, 3]),
        "indices holds 3, but .* 3 codes",
    ),
    "an index too low": (lambda: look_up([-2]), r"in 0..2, or -1 for padding"),
    "half an index": (lambda: look_up([0.5]), "codes are named by integers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("integer", ["uint8", "int8", "uint16", "uint32"])
def test_indices_of_any_integer_dtype(integer: str) -> None:
    """Also where neither -1 nor the number of codes is one of its numbers."""
    assert vqkit.jax.look_up(jnp.arange(300.0)[:, None], np.array([7, 100], integer))[:, 0].tolist() == [7, 100]


def test_a_wrong_index_under_a_trace_shows() -> None:
    found = jax.jit(vqkit.jax.look_up)(jnp.ones((3, 1)), jnp.array([-2, -1, 0, 2, 3]))
    np.testing.assert_array_equal(found[:, 0], [np.nan, 0, 1, 1, np.nan])


def test_without_jax() -> None:
    """The message names what to install."""
    code = "import sys; sys.modules['jax'] = None; import vqkit.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ImportError: vqkit.jax needs jax: pip install 'vqkit[jax]'\n")


def test_torch_stays_out() -> None:
    code = "import sys, vqkit.jax; vqkit.EMA(), vqkit.Reseed(), vqkit.Given([[0.0]]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
