"""Vectors and codes for the contract, in NumPy, and how answers are compared.

Suffixes: N vectors, K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, Phase, settings

# Few sizes, because some frameworks compile anew for each.
N, K, D = 48, 12, 6
BITS = {"float16": 10, "bfloat16": 7}


def draws(examples: int) -> settings:
    """For property tests: the same examples in every framework and on every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed + 10_007).standard_normal(shape).astype(dtype)


def rounded(x: np.ndarray, half: str) -> np.ndarray:
    """To the nearest number of a half precision, ties to even, in float32; of numbers that are normal there."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    steps = 2.0 ** (BITS[half] + 1)
    return np.ldexp(np.round(fraction * steps) / steps, exponent).astype(np.float32)


def grid(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (n, dim)).astype(np.float32)


def permuted(codes: int, dim: int, seed: int) -> np.ndarray:
    """One row in many orders: from (c, ..., c) all are equally far, but sums in order of d round differently."""
    rng = np.random.default_rng(seed)
    row = rng.standard_normal(dim).astype(np.float32)
    return np.stack([row[rng.permutation(dim)] for _ in range(codes)])


# name -> vectors and codes, float32, from a seed, n, K and dim
SITUATIONS: dict[str, Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "ordinary data": lambda s, n, k, d: (normal(n, d, seed=s), normal(k, d, seed=s + 1)),
    "one code": lambda s, n, k, d: (normal(n, d, seed=s), normal(1, d, seed=s + 1)),
    "data 1e4 sd from the origin": lambda s, n, k, d: (1e4 + normal(n, d, seed=s), 1e4 + normal(k, d, seed=s + 1)),
    "data 1e4 sd from the codes": lambda s, n, k, d: (1e4 + normal(n, d, seed=s), normal(k, d, seed=s + 1)),
    "codes 1e-5 apart": lambda s, n, k, d: (normal(n, d, seed=s), 1 + np.float32(1e-5) * normal(k, d, seed=s + 1)),
    "data on the codes": lambda s, n, k, d: (
        np.float32(1e-5) * np.resize(normal(k, d, seed=s), (n, d)),
        np.float32(1e-5) * normal(k, d, seed=s)[::-1].copy(),
    ),
    "ties on a grid": lambda s, n, k, d: (grid(n, d, s) / 2, grid(k, d, s + 1)),
    "duplicate codes": lambda s, n, k, d: (normal(n, d, seed=s), np.resize(normal(k // 3, d, seed=s + 1), (k, d))),
    "all codes equal": lambda s, n, k, d: (normal(n, d, seed=s), np.full((k, d), 1 / 3, np.float32)),
    "codes that rounding alone parts": lambda s, n, k, d: (
        np.repeat(normal(n, 1, seed=s), d, 1),
        permuted(k, d, s),
    ),
    "near the largest number": lambda s, n, k, d: (
        np.float32(1e37) * normal(n, d, seed=s),
        np.float32(5e37) * normal(k, d, seed=s + 1),
    ),
    "squares that underflow": lambda s, n, k, d: (
        np.float32(1e-22) * normal(n, d, seed=s),
        np.float32(1e-22) * normal(k, d, seed=s + 1),
    ),
    "denormal numbers": lambda s, n, k, d: (
        np.float32(1e-40) * normal(n, d, seed=s),
        np.float32(1e-40) * normal(k, d, seed=s + 1),
    ),
    "both scales": lambda s, n, k, d: (
        normal(n, d, seed=s) * np.resize(np.float32([1e-18, 1e18]), (n, 1)),
        normal(k, d, seed=s + 1) * np.resize(np.float32([1e-18, 1e18]), (k, 1)),
    ),
}

# What only float64 tells apart.
SITUATIONS_64: dict[str, Callable[[int, int, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "ordinary data": lambda s, n, k, d: (normal(n, d, seed=s, dtype="float64"), normal(k, d, seed=s, dtype="float64")),
    "1e-12 apart": lambda s, n, k, d: (
        1 + 1e-12 * normal(n, d, seed=s, dtype="float64"),
        1 + 1e-12 * normal(k, d, seed=s + 1, dtype="float64"),
    ),
    "beyond float32": lambda s, n, k, d: (
        1e60 * normal(n, d, seed=s, dtype="float64"),
        1e60 * normal(k, d, seed=s + 1, dtype="float64"),
    ),
}


def close(found: np.ndarray | float, expected: np.ndarray | float, dtype: str, what: str, terms: int = 8) -> None:
    """To 1e-10 in float64, in float32 to the rounding of ``terms`` operations, 2^-23 each; of the largest entry."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    bound = 1e-10 if dtype == "float64" else terms * 2.0**-23
    scale = max(1e-30, float(np.abs(expected).max(initial=0.0)))
    error = float(np.abs(found - expected).max(initial=0.0)) / scale
    assert error <= bound, f"{what}: off by {error:.1e} of the largest entry; {bound:.1e} is allowed"


def same_bits(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    assert found.dtype == expected.dtype, f"{what}: dtype {found.dtype}, not {expected.dtype}"
    different = int((found.view(np.uint8) != expected.view(np.uint8)).sum())
    assert different == 0, f"{what}: {different} bytes differ"


def unchanged(before: dict[str, np.ndarray], after: dict[str, np.ndarray], what: str) -> None:
    changed = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert not changed, f"{what}: {', '.join(changed)} changed"
