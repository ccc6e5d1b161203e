"""A VQ-VAE of two linear maps trained in NumPy: every gradient by hand, optimizers as their papers write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import vqkit
from tests.frameworks.adapter import Trained
from vqkit import reference

Arrays = dict[str, np.ndarray]
EPS, BETA_1, BETA_2 = 1e-12, 0.875, 1 - 2.0**-10


def gradients(
    parameters: Arrays, x: np.ndarray, target: np.ndarray, pull_back: Callable[..., np.ndarray], beta: float
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Of ``mean (y - target)^2 + codebook + commitment``, with z and the indices.

    ``z = x E + b``, ``y = z_q D + c``: ``dL/dy = 2 (y - t)/size``, ``dL/dD = z_q^T dL/dy``, ``dL/dz_q = dL/dy D^T``;
    the estimator takes that to z, where the commitment's joins it, and ``dL/dE = x^T dL/dz``.
    """
    p = parameters
    z = x @ p["encoder"] + p["encoder_bias"]
    indices = reference.nearest(z, p["codes"])
    z_q = reference.look_up(p["codes"], indices)
    y = z_q @ p["decoder"] + p["decoder_bias"]
    of_y = 2 * (y - target) / y.size
    committed, of_codes = reference.losses_gradient(z, p["codes"], indices, beta)
    of_z = pull_back(of_y @ p["decoder"].T, z, z_q) + committed
    found = {
        "encoder": x.T @ of_z,
        "encoder_bias": of_z.sum(0),
        "decoder": z_q.T @ of_y,
        "decoder_bias": of_y.sum(0),
        "codes": of_codes,
    }
    return found, z, indices


class SGD:
    """``p' = p - r g``."""

    def step(self, name: str, gradient: np.ndarray, rate: float) -> np.ndarray:
        return rate * gradient


class Adam:
    """``m' = b1 m + (1-b1) g``, ``v' = b2 v + (1-b2) g^2``, ``p' = p - r m^/(sqrt(v^) + eps)`` (Kingma and Ba 2015).

    Keras adds eps before the correction of v, others after it, and on TensorFlow rounds b1 and b2 to float32 in their
    powers: 1 - 0.999 is then 1.3e-5 off. So eps is 1e-12 here, and b1 and b2 are what float32 holds exactly.
    """

    def __init__(self) -> None:
        self.memory: dict[str, tuple[int, np.ndarray | float, np.ndarray | float]] = {}

    def step(self, name: str, gradient: np.ndarray, rate: float) -> np.ndarray:
        t, m, v = self.memory.get(name, (0, 0.0, 0.0))
        t, m, v = t + 1, BETA_1 * m + (1 - BETA_1) * gradient, BETA_2 * v + (1 - BETA_2) * gradient**2
        self.memory[name] = t, m, v
        return rate * (m / (1 - BETA_1**t)) / (np.sqrt(v / (1 - BETA_2**t)) + EPS)


def train(
    codes: np.ndarray,
    weights: Arrays,
    batches: list[tuple[np.ndarray, np.ndarray]],
    *,
    update: vqkit.EMA | vqkit.Gradient | vqkit.Frozen,
    pull_back: Callable[..., np.ndarray],
    optimizer: str,
    rate: float,
) -> Trained:
    parameters, n, beta = {**weights, "codes": codes}, np.ones(len(codes)), 0.25
    stepped = {"sgd": SGD, "adam": Adam}[optimizer]()
    for x, target in batches:
        found, z, indices = gradients(parameters, x, target, pull_back, beta)
        if isinstance(update, vqkit.EMA):
            counts, sums = reference.statistics(z, parameters["codes"], indices)
            moved, n = reference.ema(parameters["codes"], n, counts, sums, update.decay)
        elif isinstance(update, vqkit.Frozen):
            moved = parameters["codes"]
        else:
            moved = parameters["codes"] - stepped.step("codes", found["codes"], rate)
        parameters = {name: parameters[name] - stepped.step(name, found[name], rate) for name in weights}
        parameters["codes"] = moved
    return Trained(parameters.pop("codes"), parameters)
