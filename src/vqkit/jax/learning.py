"""How a codebook learns from statistics: one step of its rule, revival, and sums over devices."""

from __future__ import annotations

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vqkit.codebooks import EMA, Frozen, NoRevival, Revival, Update
from vqkit.jax.codebook import Codebook
from vqkit.jax.quantize import Statistics
from vqkit.jax.sampling import drawn, least_rows

_USAGE_DECAY = 0.99


def update(
    codebook: Codebook,
    statistics: Statistics,
    *,
    rule: Update = EMA(),
    revival: Revival = NoRevival(),
    axis_name: Hashable = None,
) -> Codebook:
    """The codebook after one training step; without a vector in ``statistics`` it stays as it is.

    Under ``EMA``: ``n' = d n + (1-d) c`` and ``e' = e + (1-d)/n' sum(z - e)``, the published rule (van den Oord et al.
    2017, eq. 6 to 8) in a form in which a code that was not chosen keeps its bits. ``usage' = 0.99 usage + c``.

    Args:
        codebook: its ``codes`` are those that the statistics were made with, or, where they learn by their gradient,
            the optimizer's new ones.
        statistics: from ``quantize``.
        rule: how the codes learn: ``EMA(decay)``, ``Frozen()``, or ``Gradient()``, which leaves them to the optimizer.
        revival: what happens to codes that are no longer chosen: ``NoRevival()`` or ``Reseed()``.
        axis_name: inside ``shard_map``, ``pmap`` or ``vmap``, the axis over which statistics are summed; every device
            then gets the same codebook.

    Raises:
        ValueError: a rule or revival that is none, or statistics that do not fit.

    >>> import vqkit
    >>> import vqkit.jax
    >>> codebook = vqkit.jax.init(jax.random.key(0), codebook_size=2, dim=1, start=vqkit.Given([[0.0], [9.0]]))
    >>> statistics = vqkit.jax.quantize(codebook, jnp.array([[1.0], [2.0]])).statistics
    >>> update(codebook, statistics, rule=vqkit.EMA(decay=0.5)).codes.tolist()
    [[1.0], [9.0]]
    """
    vectors = _checked(codebook, statistics, rule, revival)
    codes = len(codebook.codes)
    if axis_name is not None:
        statistics = _over_devices(statistics, axis_name)
    wide = codebook.codes.dtype
    counts_K, sums_KD = statistics.counts.astype(wide), statistics.sums.astype(wide)
    codes_KD, n_K = rule.step(codebook.codes, codebook.n, counts_K, sums_KD, jnp)
    tokens = counts_K.sum().astype(jnp.int32)
    grown_K = jnp.minimum(codebook.idle, np.iinfo(np.int32).max - tokens) + tokens  # stays at the greatest int32
    idle_K = jnp.where(counts_K > 0, 0, grown_K)
    if vectors:
        order_V = jnp.argsort(-idle_K, stable=True)[:vectors]
        revived_V = revival.dead(idle_K)[order_V] & drawn(statistics.hashes[:vectors])
        rows_V = jnp.where(revived_V, order_V, codes)
        codes_KD = codes_KD.at[rows_V].set(statistics.sample[:vectors].astype(wide), mode="drop")
        n_K = n_K.at[rows_V].set(0, mode="drop")
        idle_K = idle_K.at[rows_V].set(0, mode="drop")
    new = Codebook(codes_KD, n_K, _USAGE_DECAY * codebook.usage + counts_K, idle_K, codebook.steps + 1)
    return jax.tree.map(lambda new, old: jnp.where(tokens > 0, new, old), new, codebook)


def merge(first: Statistics, second: Statistics) -> Statistics:
    """The statistics of both batches together, made with the same codes: for gradients accumulated over batches."""
    size = len(first.hashes)
    if len(second.hashes) != size:
        raise ValueError(f"first samples {size} vectors, second {len(second.hashes)}: quantize both with one sample=.")
    totals = [one + other for one, other in zip(first[:3], second[:3], strict=True)]
    rows, hashes = map(jnp.concatenate, zip(first[3:], second[3:], strict=True))
    return Statistics._make([*totals, *least_rows(rows, hashes, size)])


def _over_devices(statistics: Statistics, axis_name: Hashable) -> Statistics:
    """As ``merge`` over all devices. Samples are gathered as a sum of otherwise empty places: JAX then knows that the
    result is the same on all of them."""
    place, devices = lax.axis_index(axis_name), lax.psum(1, axis_name)

    def placed(x: Array) -> Array:
        return jnp.zeros((devices, *x.shape), x.dtype).at[place].set(x)

    *totals, sample, hashes = statistics
    *totals, rows, keys = lax.psum((*totals, placed(sample), placed(hashes)), axis_name)
    return Statistics._make([*totals, *least_rows(jnp.concatenate(rows), keys.reshape(-1), len(hashes))])


def _checked(codebook: Codebook, statistics: Statistics, rule: Update, revival: Revival) -> int:
    """How many vectors revival needs."""
    if not isinstance(codebook, Codebook):
        raise ValueError(
            f"codebook is a {type(codebook).__name__}; update takes a Codebook: keep one beside codes that learn by "
            "their gradient, and pass codebook._replace(codes=codes)."
        )
    if isinstance(rule, type) or not hasattr(rule, "step"):
        raise ValueError(f"rule is {rule!r}; it must be an object such as EMA(decay=0.99), Gradient() or Frozen().")
    if isinstance(revival, type) or not hasattr(revival, "dead"):
        raise ValueError(f"revival is {revival!r}; it must be an object such as Reseed() or NoRevival().")
    if statistics.sums.shape != codebook.codes.shape:
        raise ValueError(
            f"statistics are of {statistics.sums.shape[0]} codes of dimension {statistics.sums.shape[1]}, but codebook "
            f"has shape {codebook.codes.shape}: pass those that quantize returned for this codebook."
        )
    vectors = revival.vectors(len(codebook.codes))
    if vectors and isinstance(rule, Frozen):
        raise ValueError(f"revival is {revival}, which moves codes, but rule=Frozen() never does: use NoRevival().")
    if len(statistics.sample) < vectors:
        raise ValueError(
            f"revival is {revival}, which needs {vectors} vectors, but statistics hold {len(statistics.sample)}: call "
            f"quantize(..., sample={vectors}), or sample=revival.vectors(codebook_size)."
        )
    return vectors
