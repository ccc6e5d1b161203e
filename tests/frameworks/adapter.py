"""What the contract asks of a framework: NumPy arrays in, NumPy arrays out.

An adapter is a module with the names of ``Adapter``; a new framework needs one, and a line in ``PROCESSES``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import vqkit


class Forward(NamedTuple):
    """``z_q`` in float64 where the framework gave that, else float32; ``dtype`` is the name of the framework's own."""

    z_q: np.ndarray
    indices: np.ndarray
    codebook: float
    commitment: float
    total: float
    dtype: str


class Gradients(NamedTuple):
    """Of ``sum(z_q * g) + losses.total``; ``codes`` is zero where the codebook does not learn by its gradient."""

    z: np.ndarray
    codes: np.ndarray


class Quantizer(Protocol):
    """One quantizer with its state. ``form`` is one of the adapter's forms."""

    native: Any  # what a user of the framework has

    def set_codebook(self, codes: np.ndarray) -> None: ...

    def forward(
        self,
        z: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        training: bool = False,
        form: str = "eager",
        cast: str | None = None,
    ) -> Forward:
        """``cast`` names a dtype that z is converted to first, in the framework."""
        ...

    def gradients(
        self,
        z: np.ndarray,
        g: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        form: str = "eager",
        cast: str | None = None,
    ) -> Gradients:
        """``cast`` is of z and g; what is returned is float32 at least."""
        ...

    def learn(
        self, z: np.ndarray, mask: np.ndarray | None = None, *, form: str = "eager", cast: str | None = None
    ) -> None:
        """One training step of the codebook without an optimizer."""
        ...

    def encode(self, z: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray: ...
    def decode(self, indices: np.ndarray) -> np.ndarray: ...
    def state(self) -> dict[str, np.ndarray]:
        """``codebook`` (K, D), ``n``, ``usage`` and ``idle`` (K,)."""
        ...

    def reloaded(self, directory: Path) -> Quantizer:
        """Saved as users of the framework do, and loaded into a new object."""
        ...


class Trained(NamedTuple):
    """The weights after the last step."""

    codes: np.ndarray
    weights: dict[str, np.ndarray]


class Adapter(Protocol):
    """``forms``: "eager" and, where there is one, "jit"; ``dtypes`` and ``halves``: those that the contract is run in.

    ``revives``: "gradient", "ema" or both: with which updates a dead code can be revived.
    """

    forms: tuple[str, ...]
    dtypes: tuple[str, ...]
    halves: tuple[str, ...]
    revives: tuple[str, ...]

    def make(
        self,
        codes: np.ndarray,
        *,
        update: Any = vqkit.Gradient(),
        estimator: Any = vqkit.StraightThrough(),
        commitment: float = 0.25,
        revival: Any = vqkit.NoRevival(),
        n: Any = 1.0,
        dtype: str = "float32",
    ) -> Quantizer: ...
    def train(
        self,
        codes: np.ndarray,
        weights: dict[str, np.ndarray],
        batches: list[tuple[np.ndarray, np.ndarray]],
        *,
        update: Any,
        estimator: Any,
        optimizer: str,
        rate: float,
        dtype: str,
    ) -> Trained:
        """A step of ``mean (y - target)^2 + losses.total`` on each batch ``(x, target)``, optimizer "sgd" or "adam".

        ``z = x @ weights["encoder"] + weights["encoder_bias"]``, ``y = z_q @ weights["decoder"] + ...``.
        """
        ...
