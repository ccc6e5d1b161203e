"""One codebook in a file: each framework writes its own, and all read one that is the same for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vqkit
from tests.frameworks.adapter import Adapter
from tests.frameworks.cases import D, K, N, close, normal, same_bits, unchanged
from vqkit import reference

# What ``save_codebook(GOLDEN, CODES, COUNTS)`` wrote in version 0.1.0. Multiples of 1/16 are the same everywhere.
GOLDEN = Path(__file__).parent.parent / "golden" / "codebook.safetensors"
CODES = ((np.arange(K * D) * 37 % 101 - 50) / 16).reshape(K, D).astype(np.float32)
COUNTS = np.arange(K, dtype=np.float32) / 4


def test_every_framework_reads_one_file(framework: Adapter) -> None:
    """And goes on from it: indices and the next step are those of the definition."""
    given = vqkit.load_codebook(GOLDEN)
    same_bits(given.array, CODES, "the codes")
    same_bits(given.n, COUNTS, "n")
    vq, z = framework.make(given.array, n=given.n, update=vqkit.EMA(0.9)), 2 * normal(N, D)
    indices = reference.nearest(z, CODES)
    assert (vq.encode(z) == indices).all()
    vq.learn(z)
    codebook, n = reference.ema(CODES, COUNTS, *reference.statistics(z, CODES, indices), 0.9)
    close(vq.state()["codebook"], codebook, "float32", "the codebook", terms=N)
    close(vq.state()["n"], n, "float32", "n")


@pytest.mark.parametrize("update", [vqkit.EMA(0.9), vqkit.Gradient()], ids=repr)
def test_what_is_saved_goes_on_as_it_was(framework: Adapter, update: object, dtype: str, tmp_path: Path) -> None:
    """Codes and n to the bit, the indices and the next step."""
    vq = framework.make(normal(K, D, seed=1, dtype=dtype), update=update, dtype=dtype)
    for seed in range(3):
        vq.learn(normal(N, D, seed=seed, dtype=dtype))
    before = {name: vq.state()[name] for name in ("codebook", "n")}
    assert (len(set(before["n"])) > 3) == isinstance(update, vqkit.EMA)
    vqkit.save_codebook(tmp_path / "codes", vq.native)
    given = vqkit.load_codebook(tmp_path / "codes")
    unchanged(before, {"codebook": given.array, "n": given.n}, "what was saved and loaded:")
    again, z = framework.make(given.array, n=given.n, update=update, dtype=dtype), normal(N, D, seed=9, dtype=dtype)
    assert (again.encode(z) == vq.encode(z)).all()
    for each in (vq, again):
        each.learn(z)
    for name in before:
        same_bits(again.state()[name], vq.state()[name], f"{name} after the next step")
