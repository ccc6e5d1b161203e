"""Searches that are hard to get right, in NumPy: what every build of the C++ library is run on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from vqkit import reference

F4, F8 = np.float32, np.float64
# About tiles of 8 and 16 vectors, panels of 4 and 6 codes, and dims whose loops end in a rest.
VECTORS, CODES, DIMS = (1, 7, 15, 16, 17, 31, 33), range(1, 14), (1, 2, 3, 5, 8, 16, 17, 31, 64, 100, 257)


class Case(NamedTuple):
    """``expected`` is the reference's answer; None where a vector or a code is not finite."""

    name: str
    z: np.ndarray
    codebook: np.ndarray
    expected: np.ndarray | None


def cases() -> Iterator[Case]:
    """About 440, of float32 and float64, none of which takes the reference more than 0.1 s."""
    for name, z, codebook in _finite(np.random.default_rng(0)):
        z, codebook = np.ascontiguousarray(z), np.ascontiguousarray(codebook, dtype=z.dtype)
        with np.errstate(over="ignore", under="ignore"):
            yield Case(name, z, codebook, reference.nearest(z, codebook))
    for name, z, codebook in _faulty(np.random.default_rng(1)):
        yield Case(name, z, codebook, None)


def _finite(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    def normal(*shape: int, dtype: type = F4, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
        return (offset + scale * rng.standard_normal(shape)).astype(dtype)

    for i, (n, k) in enumerate(product(VECTORS, CODES)):
        d, offset, dtype = DIMS[i % len(DIMS)], (0.0, 1e4)[i % 2], (F4, F8)[i % 3 == 0]
        yield f"{n} x {k} x {d} at {offset}", normal(n, d, dtype=dtype, offset=offset), normal(k, d, offset=offset)
    for n, k, d in ((300, 70, 1024), (1, 1, 1023), (40, 9, 1023), (2, 100, 511)):  # blocks of vectors and of codes
        yield f"{n} x {k} x {d}", normal(n, d), normal(k, d)
        yield f"{n} x {k} x {d} in float64", normal(n, d, dtype=F8), normal(k, d, dtype=F8)
    for n, k, d, dtype in product((1, 20, 520), (127, 128, 191, 600), (4, 24), (F4, F8)):  # codes over threads
        yield f"few vectors: {n} x {k} x {d} in {dtype.__name__}", normal(n, d, dtype=dtype), normal(k, d)
    codebook = normal(70001, 3)
    yield "more codes than 16 bits count", codebook[[0, 65535, 65536, 65537, 70000, 3]] + F4(1e-6), codebook

    for k, copies in ((5, 3), (40, 2), (100, 5)):
        once = normal(k, 6)
        for n in (3, 100):
            yield f"{k} codes {copies} times, {n} vectors", normal(n, 6), np.tile(once, (copies, 1))
            yield f"{k} codes {copies} times in a row", normal(n, 6), np.repeat(once, copies, 0)
    for k in (4, 300):
        yield f"{k} times one code", normal(50, 7), np.full((k, 7), 1 / 3)
        yield f"{k} codes of zeros of either sign", normal(50, 7), np.where(rng.random((k, 7)) < 0.5, 0.0, -0.0)
    for k in (12, 400):
        signs = np.where(rng.random((k, 5)) < 0.5, F4(0), F4(-0.0)) + np.eye(5, dtype=F4)[rng.integers(0, 5, k)]
        signs[rng.random((k, 5)) < 0.3] *= -0.0
        yield f"{k} codes that differ in the sign of zero", normal(80, 5), signs

    for d, offset, ulps in product((1, 6, 16, 33), (0.0, 1.0, 1e4), (-3, -1, 0, 1, 3)):
        codebook = normal(24, d, offset=offset)
        z = (codebook[::2] + codebook[1::2]) / 2
        for _ in range(abs(ulps)):
            z = np.nextafter(z, F4(np.inf * ulps))
        yield f"{ulps} ulps from the middle, {d} dims at {offset}", z, codebook
    for n, d, spread in product((30, 200), (4, 24), (1e-5, 1e-7)):
        yield f"{n} vectors, codes {spread} apart", normal(n, d, offset=1.0), normal(150, d, offset=1.0, scale=spread)
    for n, d, k in ((20, 6, 60), (200, 24, 300), (200, 3, 300)):
        row = normal(d)
        permuted = np.stack([rng.permutation(row) for _ in range(k)])
        yield f"{k} codes that rounding alone parts", np.repeat(normal(n, 1), d, 1), permuted
        yield "and far from zero", np.repeat(normal(n, 1), d, 1) + F4(100), permuted + F4(100)

    corners = np.array(list(product((0.0, 1.0), repeat=8)), F4)  # 256 codes, all equally far from the centre
    for share in (1.0, 0.1):  # with few such vectors they are decided one by one, with many in a scan of their own
        z = np.where(rng.random((400, 1)) < share, F4(0.5), normal(400, 8))
        yield f"every code a candidate for {share} of the vectors", z, corners
        yield "and shuffled", z, rng.permutation(corners)
        yield "and in float64", z.astype(F8), corners
        yield "and far away", z + F4(1000), corners + F4(1000)
    for candidates in (31, 32, 33, 34, 200):  # as many codes on a circle about the vector, among others
        circle = np.zeros((candidates, 20), F4)
        circle[range(candidates), np.arange(candidates) % 20] = np.where(rng.random(candidates) < 0.5, 1, -1)
        codebook = rng.permutation(np.concatenate([circle, normal(300, 20, offset=5.0)]))
        yield f"{candidates} candidates", np.concatenate([np.zeros((3, 20), F4), normal(60, 20, offset=5.0)]), codebook
        yield f"{candidates} candidates, few vectors", np.zeros((3, 20), F4), codebook
    for n, k, d in ((60, 81, 4), (600, 300, 3)):
        grid = rng.integers(-2, 3, (k, d)).astype(F4)
        yield "a grid", rng.integers(-4, 5, (n, d)).astype(F4) / 2, grid
        yield "a fine grid far away", 4096 + rng.integers(-4, 5, (n, d)).astype(F4) / 2048, 4096 + grid / 1024

    for n, k, d in ((60, 40, 3), (5, 400, 20)):
        for scale in (1e-18, 1e-22, 1e-38, 1e-40, 1e-43, 1e18, 1e19, 1e30, 3e37):
            yield f"float32 about {scale}", normal(n, d, scale=scale), normal(k, d, scale=scale)
        for scale in (1e-150, 1e-161, 1e-170, 1e-310, 1e-322, 1e150, 1e160, 1e307):
            yield f"float64 about {scale}", normal(n, d, dtype=F8, scale=scale), normal(k, d, dtype=F8, scale=scale)
        for a, b in ((1e-30, 1e30), (1e-20, 1.0), (1.0, 1e-20), (1e-44, 1e-5), (1e4, 1.0), (1e12, 1e-12), (3e37, 1.0)):
            yield f"vectors about {a}, codes about {b}", normal(n, d, scale=a), normal(k, d, scale=b)
        for outlier, sign in product((1e8, 1e19, 1e30, 3e38), (1, -1)):
            z, codebook = normal(n, d), normal(k, d)
            codebook[rng.integers(k), rng.integers(d)] = sign * outlier
            z[-1] = z[-1] * F4(outlier / 8)
            yield f"one code of {sign * outlier}", z, codebook
        for apart in (1e3, 1e6, 1e10):
            sides = [np.where(rng.random((rows, 1)) < 0.5, F4(apart), F4(-apart)) for rows in (n, k)]
            yield f"two clusters {apart} apart", normal(n, d) + sides[0], normal(k, d) + sides[1]
    for n, k, d in ((1, 6, 1), (17, 5, 4), (40, 300, 20)):  # the rounding bound of one code overflows, its square not
        for far, long, dtype in ((1e18, 1e14, F4), (1e14, 3e16, F4), (1e150, 1e100, F8)):
            z, codebook = normal(n, d, dtype=dtype, scale=far), normal(k, d, dtype=dtype)
            codebook[k // 2] *= dtype(long)
            yield f"vectors about {far}, codes about 1 and one of {long}", z, codebook
            yield "and the vectors on the other side", -z, codebook
    for d, dtype in product((8, 24), (F4, F8)):  # usual codes are long, the near ones short, in pairs an ulp apart
        short = normal(40, d, dtype=dtype)
        pairs = np.nextafter(short, np.where(rng.random(short.shape) < 0.5, dtype(np.inf), dtype(-np.inf)))
        codebook = np.concatenate([short, pairs, 1e4 * np.eye(d, dtype=dtype)[rng.integers(0, d, 160)]])
        yield (
            f"short codes among long ones, {d} dims",
            normal(200, d, dtype=dtype, scale=300),
            rng.permutation(codebook),
        )
    yield "the ends of float32", np.array([[3.4e38], [-3.4e38], [0]], F4), np.array([[-3.4e38], [3.4e38], [0], [1]], F4)


def _faulty(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for (n, k, d), fault, dtype in product(((1, 1, 1), (40, 9, 5), (20, 600, 3)), (np.nan, np.inf, -np.inf), (F4, F8)):
        for at in (0, -1, n * d // 2):
            z, codebook = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((k, d)).astype(dtype)
            z.flat[at] = fault
            yield f"{fault} at {at} of {n} x {d}", z, codebook
        for at in (0, -1, k * d // 2):
            z, codebook = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((k, d)).astype(dtype)
            codebook.flat[at] = fault
            yield f"{fault} at {at} of the codes {k} x {d}", z, codebook
