"""Laws 5, 6 and 8 to 10: where gradients go, and how large they are."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.contract.law import Law, draws, same_bits
from tests.zoo import Case, vectors
from vqkit import reference

seeds = st.integers(0, 10**6)
F64 = torch.float64


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().double().numpy() for t in tensors)


def _gradient(value: Tensor, of: Tensor) -> Tensor:
    """The derivative of a scalar; zeros where there is no path."""
    if not value.requires_grad or not of.requires_grad:
        return torch.zeros_like(of)
    (found,) = torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)
    return torch.zeros_like(of) if found is None else found


# --- law 5 --------------------------------------------------------------------------------------------------------


def law_05_estimator(case: Case) -> None:
    """The derivative of z_q by z is the estimator's closed form; into the codebook nothing comes from z_q."""

    @draws(10)
    @given(seeds, st.integers(1, 20), st.sampled_from([torch.float32, F64, torch.bfloat16]))
    def estimator(seed: int, n: int, dtype: torch.dtype) -> None:
        vq = case.holding(vectors(6, 5, seed=seed, dtype=F64 if dtype == F64 else torch.float32))
        z = vectors(n, 5, seed=seed + 1).to(dtype).requires_grad_()
        g = vectors(n, 5, seed=seed + 2).to(dtype)
        z_q = vq(z).z_q
        given = (z_q * g).sum()
        expected = case.pull_back(*_numpy(g, z, z_q))
        found = _gradient(given, z)
        assert found.dtype == dtype, f"law 5: the gradient of {dtype} input is {found.dtype}"
        tolerance = {F64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        error = float(np.abs(found.double().numpy() - expected).max())
        assert error <= tolerance * case.gain, f"law 5: dz_q/dz is off its closed form by {error:.1e}"
        if case.pull_back is reference.straight_through:
            assert same_bits(found, g), "law 5: the gradient is not copied bit for bit"
        moved = z.detach().T.contiguous().T.unsqueeze(0).requires_grad_()  # the same numbers in another order of memory
        again = _gradient((vq(moved).z_q * g).sum(), moved)
        error = float((again[0] - found).abs().max())
        assert error <= tolerance * case.gain, f"law 5: how z lies in memory changes the gradient by {error:.1e}"
        for name, parameter in vq.named_parameters():
            leak = float(_gradient(given, parameter).abs().max())
            assert leak == 0, f"law 5: the gradient of z_q reaches {name} ({leak:.1e})"

    estimator()


# --- law 6 --------------------------------------------------------------------------------------------------------


def law_06_losses(case: Case) -> None:
    """Both losses are those of eq. 3, of z_e, each with its own gradient; beta scales the commitment alone."""

    @draws(10)
    @given(seeds, st.integers(1, 20), st.booleans(), st.sampled_from([F64, torch.float32, torch.bfloat16]))
    def losses(seed: int, n: int, masked: bool, dtype: torch.dtype) -> None:
        vq = case.holding(vectors(6, 5, seed=seed, dtype=F64 if dtype == F64 else torch.float32))
        z = (2 * vectors(n, 5, seed=seed + 1)).to(dtype).requires_grad_()
        mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
        _, indices, found = vq(z, mask)
        z_ND, codebook_KD = _numpy(z, vq.codebook)
        codebook, commitment = reference.losses(z_ND, codebook_KD, indices.numpy(), case.commitment)
        by_gradient = case.update == "gradient"
        extra = sum(getattr(found, name).item() for name in found._fields if name not in _TERMS)
        values = {
            "codebook": codebook,
            "commitment": commitment,
            "total": commitment + extra + (codebook if by_gradient else 0.0),
        }
        for name, value in values.items():
            loss = getattr(found, name)
            assert loss.dtype in (torch.float32, F64), f"law 6: the {name} loss is in {loss.dtype}"
            close = np.isclose(loss.item(), value, rtol=1e-12 if dtype == F64 else 1e-5)
            assert close, f"law 6: the {name} loss is {loss.item()}, not {value}"
        assert found.codebook.requires_grad == by_gradient, "law 6: the codebook loss is live without an update by it"
        of_z, of_codes = reference.losses_gradient(z_ND, codebook_KD, indices.numpy(), case.commitment)
        tolerance = {F64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        wanted = {
            ("commitment", "z"): of_z,
            ("codebook", "z"): 0 * of_z,
            ("commitment", "the codebook"): 0 * of_codes,
            ("codebook", "the codebook"): of_codes * by_gradient,
        }
        for (name, to), expected in wanted.items():
            gradient = _gradient(getattr(found, name), z if to == "z" else vq.codebook)
            error = float(np.abs(gradient.double().numpy() - expected).max(initial=0.0))
            assert error <= tolerance, f"law 6: the gradient of the {name} loss to {to} is off by {error:.1e}"

    losses()


_TERMS = ("codebook", "commitment", "total")


# --- law 8 --------------------------------------------------------------------------------------------------------


class Surrogate:
    """The objective ``sum w sin(z_q) + losses.total`` with the assignment and every stopped value held at (z0, e0).

    ``z_q = e0 + M (z - z0)`` with M the identity, or of the rotation trick ``lambda H_(a+b) H_a``: the product of two
    reflections, which is the rotation of a onto b in their plane, told in another way than reference.py does.
    """

    def __init__(self, case: Case, z: np.ndarray, codebook: np.ndarray, indices: np.ndarray, w: np.ndarray) -> None:
        self.case, self.z0, self.e0, self.w, self.indices = case, z, codebook[indices], w, indices
        self.maps = np.stack([self._map(*pair) for pair in zip(z, self.e0, strict=True)])

    def _map(self, z: np.ndarray, q: np.ndarray) -> np.ndarray:
        if self.case.pull_back is reference.straight_through:
            return np.eye(len(z))
        a, b = z / np.linalg.norm(z), q / np.linalg.norm(q)
        scale = min(np.linalg.norm(q) / np.linalg.norm(z), self.case.gain)
        return scale * _reflection(a + b) @ _reflection(a)

    def __call__(self, z: np.ndarray, codebook: np.ndarray) -> float:
        z_q = self.e0 + np.einsum("nij,nj->ni", self.maps, z - self.z0)
        value = (self.w * np.sin(z_q)).sum() + self.case.commitment * np.mean((z - self.e0) ** 2)
        if self.case.update == "gradient":
            value += np.mean((self.z0 - codebook[self.indices]) ** 2)
        return float(value)


def _reflection(normal: np.ndarray) -> np.ndarray:
    return np.eye(len(normal)) - 2 * np.outer(normal, normal) / (normal @ normal)


def law_08_finite_differences(case: Case) -> None:
    """First and second derivatives agree with finite differences of the surrogate, in float64."""

    @draws(6)
    @given(seeds, st.integers(1, 6), st.integers(2, 5))
    def finite_differences(seed: int, n: int, dim: int) -> None:
        vq = case.holding(vectors(4, dim, seed=seed, dtype=F64))
        z = vectors(n, dim, seed=seed + 1, dtype=F64).requires_grad_()
        w, u, v, v_codes = (
            vectors(rows, dim, seed=seed + s, dtype=F64) for s, rows in ((2, n), (3, n), (4, n), (5, 4))
        )
        z_q, indices, losses = vq(z)
        z0, e0 = _numpy(z, vq.codebook)
        surrogate = Surrogate(case, z0, e0, indices.numpy(), w.numpy())
        value = (w * z_q.sin()).sum() + losses.total
        points = [z, vq.codebook] if vq.codebook.requires_grad else [z]
        found = torch.autograd.grad(value, points, create_graph=True, allow_unused=True)
        first = [0 * point if g is None else g for g, point in zip(found, points, strict=True)]
        names = ("z", "the codebook")
        for found, point, name in zip(first, points, names, strict=False):
            for at in np.ndindex(*point.shape):
                move = np.zeros(point.shape)
                move[at] = 1e-5
                dz, de = (move, 0) if name == "z" else (0, move)
                slope = (surrogate(z0 + dz, e0 + de) - surrogate(z0 - dz, e0 - de)) / 2e-5
                error = abs(found[at].item() - slope)
                assert error < 1e-7, f"law 8: the gradient to {name} differs from a finite difference by {error:.1e}"
        # The second derivative along u in z, then along (v in z) or (v in the codebook).
        along_u = (first[0] * u).sum() + (0 if len(points) == 1 else (first[1] * v_codes).sum())
        second = torch.autograd.grad(along_u, points, allow_unused=True)
        a_z, a_e = 1e-3 * u.numpy(), 1e-3 * v_codes.numpy() * (len(points) == 2)
        for found, name, direction in zip(second, names, (v, v_codes), strict=False):
            b = 1e-3 * direction.numpy()
            b_z, b_e = (b, 0 * e0) if name == "z" else (0 * z0, b)
            signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
            bend = sum(s * t * surrogate(z0 + s * a_z + t * b_z, e0 + s * a_e + t * b_e) for s, t in signs) / 4e-6
            here = 0.0 if found is None else float((found * direction).sum())
            close = abs(here - bend) < 1e-4 * (1 + abs(bend))
            assert close, f"law 8: the second derivative by {name} is {here:.6f}, a finite difference gives {bend:.6f}"

    finite_differences()


# --- law 9 --------------------------------------------------------------------------------------------------------


def law_09_live_terms(case: Case) -> None:
    """Every term of the objective moves what it claims to move, and the codebook has something to learn from."""
    vq, z = case.make(), vectors(32, 8).requires_grad_()
    losses = vq(z).losses
    moved = {"z": z, **dict(vq.named_parameters())}
    claims = {"commitment": ["z"], "codebook": ["codebook"] if case.update == "gradient" else []}
    for name in losses._fields:
        for target in claims.get(name, list(moved)):
            assert target in moved, f"law 9: the {name} loss is to move {target}, which is no parameter"
        live = [target for target in claims.get(name, moved) if _gradient(getattr(losses, name), moved[target]).any()]
        assert live or claims.get(name) == [], f"law 9: the {name} loss moves nothing that it claims to move"
    if case.update == "gradient":
        assert _gradient(losses.total, vq.codebook).any(), "law 9: the codebook gets no gradient from losses.total"


# --- law 10 -------------------------------------------------------------------------------------------------------


def law_10_gain(case: Case) -> None:
    """``|dL/dz| <= gain |dL/dz_q|`` for every z, at 0, at e and at -c e too, and as reference.py defines it there."""

    @draws(10)
    @given(seeds, st.integers(1, 8), st.sampled_from([F64, torch.float32]))
    def gain(seed: int, dim: int, dtype: torch.dtype) -> None:
        e = vectors(1, dim, seed=seed, dtype=dtype)
        aside = vectors(1, dim, seed=seed + 1, dtype=dtype)
        for code in (e, 1e-3 * e, 1e3 * e, 1e-30 * e, 0 * e):
            points = [0 * e, e, -e, -1e-3 * e, -1e3 * e, 1e-12 * aside, 1e-30 * aside, 1e30 * aside, aside]
            points += [-e + s * aside for s in (1e-1, 1e-2, 1e-4, 1e-6, 1e-9)]
            z = torch.cat(points).requires_grad_()
            g = vectors(len(z), dim, seed=seed + 2, dtype=dtype)
            z_q = case.holding(code)(z).z_q
            found = _gradient((z_q * g).sum(), z)
            assert torch.isfinite(found).all(), f"law 10: the gradient is not finite at z = {_worst(found, z)}"
            ratio = found.double().norm(dim=1) / g.double().norm(dim=1)
            largest = float(ratio.max())
            assert largest <= case.gain * (1 + 1e-3), f"law 10: the gain is {largest:.3g} > {case.gain}"
            assert torch.equal(z_q, code.expand_as(z_q)), "law 10: z_q is not the code"
            expected = case.pull_back(*_numpy(g, z, z_q))
            error = np.abs(found.double().numpy() - expected).max() / case.gain
            tolerance = 1e-8 if dtype == F64 else 5e-3
            assert error < tolerance, f"law 10: the gradient is off its definition by {error:.1e}"

    gain()


def _worst(found: Tensor, z: Tensor) -> list[float]:
    return z[~torch.isfinite(found).all(1)][0].tolist()


LAWS = (
    Law(law_05_estimator),
    Law(law_06_losses),
    Law(law_08_finite_differences),
    Law(law_09_live_terms),
    Law(law_10_gain),
)
