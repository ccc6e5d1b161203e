"""The definition of every quantity in vqkit and of its derivative, in float64 NumPy.

Every implementation in every framework is tested against this file; it imports nothing of vqkit and is
written to be read, not to be fast. Gradients are derived by hand, with the assignment and every stopped value
held fixed (the *surrogate*), because the argmin itself has no derivative.

Shapes: ``N`` vectors, ``K`` codes, ``D`` dimensions. ``z_ND`` are the encoder's outputs z_e(x), ``codebook_KD`` the
codes e. A padded position has index ``-1``.

Sources: [1] van den Oord, Vinyals, Kavukcuoglu 2017, *Neural Discrete Representation Learning*, arXiv:1711.00937;
[2] Fifty et al. 2024, *Restructuring Vector Quantization with the Rotation Trick*, arXiv:2410.06424.
"""

from __future__ import annotations

import numpy as np


def squared_distances(z_ND: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """``sum_d (z_d - e_d)^2``, accumulated in order of d without contraction: (N, K) float64."""
    z, e = np.asarray(z_ND, np.float64), np.asarray(codebook_KD, np.float64)
    total = np.zeros((len(z), len(e)))
    for d in range(z.shape[1]):
        difference = z[:, d, None] - e[None, :, d]
        total = total + difference * difference
    return total


def nearest(z_ND: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """``k(x) = argmin_k |z_e(x) - e_k|^2`` ([1] eq. 1); of equal sums the lowest index: (N,) int64."""
    return squared_distances(z_ND, codebook_KD).argmin(1)


def look_up(codebook_KD: np.ndarray, indices_N: np.ndarray) -> np.ndarray:
    """``z_q(x) = e_k`` ([1] eq. 2), zeros where the index is -1: (N, D)."""
    return np.where((indices_N >= 0)[:, None], codebook_KD[np.maximum(indices_N, 0)], 0.0)


# --- estimators: the derivative that stands in for the one that argmin does not have ------------------------------


def straight_through(gradient_ND: np.ndarray, z_ND: np.ndarray, q_ND: np.ndarray) -> np.ndarray:
    """``dL/dz_e = dL/dz_q``: the gradient is copied ([1] section 3.2). Its gain is 1."""
    return np.array(gradient_ND, np.float64)


def rotation_trick(gradient_ND: np.ndarray, z_ND: np.ndarray, q_ND: np.ndarray, max_gain: float = 10.0) -> np.ndarray:
    """``dL/dz_e = lambda R^T dL/dz_q`` with ``z_q = lambda R z_e``; lambda and R are held fixed ([2] section 4.2).

    R rotates ``a = z/|z|`` onto ``b = q/|q|`` in their plane: with ``c = a.b`` and ``s = a + b``,
    ``R = I - s s^T / (1 + c) + 2 b a^T``, and ``lambda = |q| / |z|``.

    Where that is undefined or unbounded it is completed so: lambda is at most ``max_gain``; R is the identity, and
    lambda 1, where z or q is zero; R is the identity where ``1 + c < 1e-6`` (opposite vectors span no plane).
    R is orthogonal, so the gain is at most ``max(1, max_gain)``.
    """
    out = np.array(gradient_ND, np.float64)
    for n, (g, z, q) in enumerate(zip(np.asarray(gradient_ND, np.float64), z_ND, q_ND, strict=True)):
        length_z, length_q = np.linalg.norm(z), np.linalg.norm(q)
        if length_z == 0 or length_q == 0:
            continue
        a, b = z / length_z, q / length_q
        scale, cosine = min(length_q / length_z, max_gain), float(a @ b)
        if 1 + cosine < 1e-6:
            out[n] = scale * g
            continue
        s = a + b
        rotation = np.eye(len(z)) - np.outer(s, s) / (1 + cosine) + 2 * np.outer(b, a)
        out[n] = scale * (rotation.T @ g)
    return out


# --- losses -------------------------------------------------------------------------------------------------------


def losses(z_ND: np.ndarray, codebook_KD: np.ndarray, indices_N: np.ndarray, beta: float) -> tuple[float, float]:
    """The codebook and the commitment loss, the second and third term of [1] eq. 3.

    ``codebook = 1/(N D) sum (sg[z_e] - e)^2`` and ``commitment = beta/(N D) sum (z_e - sg[e])^2``; N counts the
    positions whose index is not -1, and both are zero where there is none.
    """
    chosen = indices_N >= 0
    if not chosen.any():
        return 0.0, 0.0
    error = np.asarray(z_ND, np.float64)[chosen] - np.asarray(codebook_KD, np.float64)[indices_N[chosen]]
    return float(np.mean(error**2)), float(beta * np.mean(error**2))


def losses_gradient(
    z_ND: np.ndarray, codebook_KD: np.ndarray, indices_N: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """``d commitment / d z = 2 beta/(N D) (z - e)``, ``d codebook / d e_k = -2/(N D) sum_{n: k(n)=k} (z_n - e_k)``."""
    counts, sums = statistics(z_ND, codebook_KD, indices_N)
    scale = 2.0 / max(1.0, counts.sum() * z_ND.shape[1])
    residual = np.where((indices_N >= 0)[:, None], z_ND - look_up(codebook_KD, indices_N), 0.0)
    return beta * scale * residual, -scale * sums


# --- what a codebook learns from, and how -------------------------------------------------------------------------


def statistics(z_ND: np.ndarray, codebook_KD: np.ndarray, indices_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per code the number of vectors that chose it, (K,), and the sum of their residuals ``z - e``, (K, D)."""
    counts, sums = np.zeros(len(codebook_KD)), np.zeros(np.shape(codebook_KD))
    for z, k in zip(np.asarray(z_ND, np.float64), indices_N, strict=True):
        if k >= 0:
            counts[k] += 1
            sums[k] += z - codebook_KD[k]
    return counts, sums


def ema(
    codebook_KD: np.ndarray, n_K: np.ndarray, counts_K: np.ndarray, sums_KD: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """One step of the exponential moving average ([1] appendix A.1, eq. 6 to 8) in residual form.

    ``n' = d n + (1 - d) c`` and ``e' = e + (1 - d)/n' * sum(z - e)``. With ``m = n e`` this is the published
    ``m' = d m + (1 - d) sum z``, ``e' = m'/n'``, but an idle code keeps its bits and nothing underflows.
    """
    n_new = decay * n_K + (1 - decay) * counts_K
    codebook_new = np.array(codebook_KD, np.float64)
    for k in np.flatnonzero(counts_K > 0):
        codebook_new[k] += (1 - decay) / n_new[k] * sums_KD[k]
    return codebook_new, n_new


def lloyd(z_ND: np.ndarray, codebook_KD: np.ndarray) -> np.ndarray:
    """One step of Lloyd's algorithm: every code that was chosen moves to the mean of the vectors that chose it."""
    indices = nearest(z_ND, codebook_KD)
    moved = np.array(codebook_KD, np.float64)
    for k in np.unique(indices):
        moved[k] = np.asarray(z_ND, np.float64)[indices == k].mean(0)
    return moved


def idle(idle_K: np.ndarray, counts_K: np.ndarray) -> np.ndarray:
    """Tokens seen since each code was last chosen: 0 where it was chosen, else grown by the tokens of this step."""
    return np.where(counts_K > 0, 0, idle_K + counts_K.sum())


# --- how well a codebook is used ----------------------------------------------------------------------------------


def usage(counts_K: np.ndarray) -> float:
    """The share of codes that were chosen at all, in [0, 1]."""
    return float((np.asarray(counts_K) > 0).mean())


def perplexity(counts_K: np.ndarray) -> float:
    """``exp(-sum_k p_k log p_k)`` with ``p = c / sum c``: between 1 and K; 0 where nothing was counted."""
    counts = np.asarray(counts_K, np.float64)
    if counts.sum() == 0:
        return 0.0
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
