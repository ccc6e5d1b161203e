"""Gradient estimators: what stands in for the derivative of z_q with respect to z, which argmin does not have.

They know no framework: ``pull_back`` is handed its namespace, ``xp`` (``torch``, ``jax.numpy``, ``keras.ops``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Estimator(Protocol):
    """An object for the ``estimator`` slot. ``gain`` bounds ``|pull_back(g, z, q)| / |g|`` for all z and q.

    The arrays are (..., dim), of one dtype, float32 or float64.
    """

    needs_points: ClassVar[bool]  # whether pull_back reads z and q, which must then be kept until backward

    @property
    def gain(self) -> float: ...

    def pull_back(self, gradient: Any, z: Any, q: Any, xp: Any) -> Any: ...


@dataclass(frozen=True)
class StraightThrough:
    """Copies the gradient: ``dL/dz_e = dL/dz_q``, gain 1 (van den Oord et al. 2017, section 3.2)."""

    needs_points: ClassVar[bool] = False

    @property
    def gain(self) -> float:
        return 1.0

    def pull_back(self, gradient: Any, z: Any, q: Any, xp: Any) -> Any:
        return gradient


@dataclass(frozen=True)
class RotationTrick:
    """Rotates and scales the gradient as the code is rotated and scaled from z: ``dL/dz_e = lambda R^T dL/dz_q``.

    With ``a = z/|z|``, ``b = q/|q|``, ``c = a.b``, ``s = a + b``: ``R = I - s s^T/(1 + c) + 2 b a^T`` takes a onto b,
    and ``lambda = min(|q|/|z|, max_gain)``. The gradient is copied where z or q is zero; R is the identity where
    ``1 + c < 1e-6``. R is orthogonal: the gain is at most ``max(1, max_gain)``, at 0, e and -c e too, where the
    published form divides by zero. (Fifty et al. 2024, arXiv:2410.06424, section 4.2.)
    """

    needs_points: ClassVar[bool] = True
    max_gain: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.max_gain < float("inf"):
            raise ValueError(f"max_gain is {self.max_gain}; it must be positive and finite, for example 10.0.")

    @property
    def gain(self) -> float:
        return max(1.0, self.max_gain)

    def pull_back(self, gradient: Any, z: Any, q: Any, xp: Any) -> Any:
        def along(x: Any) -> Any:
            return xp.sum(x, -1)[..., None]

        # Dividing by the largest entry first keeps the norm of a vector of 1e-30 from underflowing to zero.
        largest_z, largest_q = xp.amax(xp.abs(z), -1)[..., None], xp.amax(xp.abs(q), -1)[..., None]
        undefined = (largest_z == 0) | (largest_q == 0)
        z, q = z / xp.where(undefined, 1.0, largest_z), q / xp.where(undefined, 1.0, largest_q)
        length_z, length_q = xp.sqrt(along(z * z)), xp.sqrt(along(q * q))
        a, b = z / xp.where(undefined, 1.0, length_z), q / xp.where(undefined, 1.0, length_q)
        ratio = largest_q / xp.where(undefined, 1.0, largest_z) * (length_q / xp.where(undefined, 1.0, length_z))
        scale = xp.where(undefined, 1.0, xp.where(ratio > self.max_gain, self.max_gain, ratio))
        s = a + b
        one_plus_cosine = along(s * s) / 2  # exact near 0, where 1 + a.b would cancel
        flat = undefined | (one_plus_cosine < 1e-6)
        across = along(s * gradient) / xp.where(flat, 1.0, one_plus_cosine)
        rotated = gradient - across * s + 2 * along(b * gradient) * a
        return scale * xp.where(flat, gradient, rotated)
