"""The derivative of z_q by z, which argmin does not have."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array, lax

from vqkit.functional.estimators import Estimator

if TYPE_CHECKING:
    from jaxtyping import Float


@jax.custom_vjp
def straight_through_custom_vjp(z: Float[Array, "... dim"], z_q: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """The value ``z_q``, bit for bit; ``dL/dz`` is what arrives, and ``dL/dz_q`` zero (van den Oord et al. 2017, 3.2).

    >>> jax.grad(lambda z: (straight_through_custom_vjp(z, jnp.round(z)) ** 2).sum())(jnp.array([0.9, 2.2])).tolist()
    [2.0, 4.0]
    """
    return z_q


straight_through_custom_vjp.defvjp(
    lambda z, z_q: (straight_through_custom_vjp(z, z_q), None),  # and not z_q, of which a second derivative is zero
    lambda _, gradient: (gradient, jnp.zeros_like(gradient)),
)


def straight_through_stop_gradient(z: Float[Array, "... dim"], z_q: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """The same in one line, ``sg[z_q] + (z - sg[z])``, exact because what is added is zero where z is finite.

    The usual ``z + sg[z_q - z]`` is z_q only to rounding. Unlike the other it has a forward-mode derivative, ``jvp``,
    and it turns -0.0 into 0.0.

    >>> jax.grad(lambda z: (straight_through_stop_gradient(z, jnp.round(z)) ** 2).sum())(jnp.array([0.9, 2.2])).tolist()
    [2.0, 4.0]
    """
    return lax.stop_gradient(z_q) + (z - lax.stop_gradient(z))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def estimate(estimator: Estimator, z: Array, z_q: Array) -> Array:
    """The value ``z_q``, bit for bit; the gradient of z is the estimator's, that of z_q zero.

    It is given as the transpose of ``pull_back``, which JAX transposes once more for a gradient: so a derivative in
    forward mode is there too, and a second one.
    """
    return z_q


@estimate.defjvp
def _derivative(estimator: Estimator, points: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    z, z_q = points
    wide = jnp.promote_types(z.dtype, jnp.float32)
    z_fixed, q_fixed = (lax.stop_gradient(point).astype(wide) for point in points)

    def pull_back(gradient: Array) -> Array:
        return estimator.pull_back(gradient.astype(wide), z_fixed, q_fixed, jnp).astype(gradient.dtype)

    (pushed,) = jax.linear_transpose(pull_back, z_q)(tangents[0])
    return estimate(estimator, z, z_q), pushed
