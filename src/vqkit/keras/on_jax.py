"""What Keras has no operation for, on its JAX backend; see ``on_tensorflow``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vqkit.jax.search import nearest_codes

search = nearest_codes


def is_concrete(x: jax.Array) -> bool:
    return not isinstance(x, jax.core.Tracer)


def read(variable: Any) -> jax.Array:
    return variable.value


def bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def look_up(codebook_KD: jax.Array, indices_N: jax.Array) -> jax.Array:
    return jnp.take(codebook_KD, indices_N, axis=0)


def segment_sum(x: jax.Array, indices_N: jax.Array, codes: int) -> jax.Array:
    return jax.ops.segment_sum(x, indices_N, codes)


def over_replicas(sums: list[jax.Array], rows: jax.Array | None) -> tuple[list[jax.Array], jax.Array | None]:
    """``keras.distribution`` shards one global batch: what is summed is the whole already."""
    return sums, rows
