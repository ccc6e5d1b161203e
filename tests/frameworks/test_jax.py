"""What is of JAX alone: transformations, devices, memory, second derivatives. The rest is the contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import vqkit
import vqkit.jax
from tests.frameworks.cases import D, K, N, normal, permuted
from vqkit import reference

CODES = 24
EMA, RESEED = vqkit.EMA(decay=0.9), vqkit.Reseed(after=0.5, at_most=6)


def codebook_of(codes: np.ndarray, n: float = 1.0) -> vqkit.jax.Codebook:
    given = vqkit.Given(codes, n)
    return vqkit.jax.init(jax.random.key(0), codebook_size=len(codes), dim=codes.shape[1], start=given)


def learn(
    codebook: vqkit.jax.Codebook, z: jax.Array, mask: jax.Array | None = None, axis_name: str | None = None
) -> vqkit.jax.Codebook:
    statistics = vqkit.jax.quantize(codebook, z, mask=mask, sample=RESEED.vectors(CODES)).statistics
    return vqkit.jax.update(codebook, statistics, rule=EMA, revival=RESEED, axis_name=axis_name)


step = jax.jit(learn)  # compiling takes nearly all of the time here: one for all tests, of 64 vectors and a mask
ALL = np.ones(64, bool)


def same(first: tuple, second: tuple) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# --- transformations ----------------------------------------------------------------------------------------------

# Vectors (3, 40, D) and codes (K, D) to indices (3, 40).
search = vqkit.jax.nearest_codes
jitted = jax.jit(search)
SEARCHES: dict[str, Callable] = {
    "eager": search,
    "jit of vmap of vmap": jax.jit(jax.vmap(jax.vmap(search, (0, None)), (0, None))),
    "vmap over codes": lambda z, e: jax.vmap(search, (None, 0))(z, jnp.stack([e, e[::-1]]))[0],
    "vmap over both": lambda z, e: jax.vmap(search)(z, jnp.stack([e, e, e])),
    "vmap of cond": lambda z, e: jax.vmap(
        lambda z: lax.cond(z.sum() < 1e9, lambda: jitted(z, e), lambda: jnp.zeros(40, jnp.int32))
    )(z),
    "scan": lambda z, e: lax.scan(lambda carry, z: (carry, search(z, e)), 0, z)[1],
    "grad of checkpoint": lambda z, e: jax.grad(jax.checkpoint(lambda z: (z.sum(), search(z, e))), has_aux=True)(z)[1],
    "export": lambda z, e: jax.export.export(jitted)(z, e).call(z, e),
}


@pytest.mark.parametrize("way", SEARCHES)
def test_the_search_is_exact_under(way: str) -> None:
    """Ordinary vectors, and ones that are equally far from all codes but for the rounding of sums in order of d."""
    z, codes = normal(3, 40, 12), np.concatenate([permuted(20, 12, seed=1), normal(4, 12, seed=2)])
    z[:, ::2] = z[:, ::2, :1]
    found = SEARCHES[way](jnp.asarray(z), jnp.asarray(codes))
    assert found.dtype == jnp.int32
    assert np.array_equal(found.reshape(-1), reference.nearest(z.reshape(-1, 12), codes))


@pytest.mark.parametrize("scale", [1e-39, 1e-38, 1e19, 1e25])
def test_the_search_is_exact_where_float32_ends(scale: float) -> None:
    """XLA on a CPU reads subnormal numbers as zero, and squares overflow."""
    z, codes = normal(N, D) * np.float32(scale), normal(K, D, seed=1) * np.float32(scale)
    assert np.array_equal(search(z, codes), reference.nearest(z, codes))


def test_many_doubtful_rows_in_many_chunks() -> None:
    """More rows than a chunk and a block hold, none a multiple of either; every code stands there three times."""
    codes = np.tile(permuted(97, 6, seed=3), (3, 1))
    z = np.repeat(normal(2001, 1), 6, axis=1)
    assert np.array_equal(jitted(z, codes), reference.nearest(z, codes))


def test_memory_does_not_hold_the_scores() -> None:
    """N x K scores would take 256 MiB; in float64, as rows in doubt need them, twice that."""
    z, codes = jax.ShapeDtypeStruct((16, 4096, 8), jnp.float32), jax.ShapeDtypeStruct((1024, 8), jnp.float32)

    def loss(codes: jax.Array, z: jax.Array) -> jax.Array:
        found = vqkit.jax.quantize(codes, z)
        return found.loss + jnp.sum(found.z_q**2)

    function = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))
    memory = function.lower(codes, z).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40 * 2**20


def test_training_in_a_scan_is_training_in_a_loop() -> None:
    batches, start = normal(5, 64, 4), codebook_of(normal(CODES, 4, seed=1))
    scanned, _ = jax.jit(lambda c, zs: lax.scan(lambda c, z: (learn(c, z, ALL), None), c, zs))(start, batches)
    looped = start
    for z in batches:
        looped = step(looped, z, ALL)
    assert int(scanned.steps) == 5 and same(scanned, looped)


def test_codebooks_in_parallel() -> None:
    """Three seeds at once, each as alone."""
    keys, z = jax.random.split(jax.random.key(0), 3), jnp.asarray(normal(3, 64, 4))

    def start(key: jax.Array) -> vqkit.jax.Codebook:
        return vqkit.jax.init(key, codebook_size=CODES, dim=4, start=vqkit.Normal())

    together = jax.jit(jax.vmap(lambda key, z: learn(start(key), z, ALL)))(keys, z)
    assert not np.array_equal(together.codes[0], together.codes[1])
    for number in range(3):
        alone = step(start(keys[number]), z[number], ALL)
        for one, of_three in zip(alone, together, strict=True):
            np.testing.assert_allclose(of_three[number], one, rtol=1e-6, atol=1e-7)


# --- gradients ----------------------------------------------------------------------------------------------------

FORMS = {
    "custom_vjp": vqkit.jax.straight_through_custom_vjp,
    "stop_gradient": vqkit.jax.straight_through_stop_gradient,
}


def test_both_forms_of_the_estimator_are_one() -> None:
    """Values and gradients of encoder, codebook and decoder: of each other, of `quantize`, and of those by hand."""
    x, target = normal(N, 5), normal(N, 3, seed=1)
    params = {"encoder": normal(5, D, seed=2), "codes": normal(K, D, seed=3), "decoder": normal(D, 3, seed=4)}

    def by_form(form: Callable, params: dict) -> tuple:
        z = x @ params["encoder"]
        e = params["codes"][search(z, params["codes"])]
        z_q = form(z, e)
        stop = lax.stop_gradient
        losses = jnp.mean((stop(z) - e) ** 2) + 0.25 * jnp.mean((z - stop(e)) ** 2)
        return jnp.mean((z_q @ params["decoder"] - target) ** 2) + losses, z_q

    def by_layer(params: dict) -> tuple:
        found = vqkit.jax.quantize(params["codes"], x @ params["encoder"])
        return jnp.mean((found.z_q @ params["decoder"] - target) ** 2) + found.loss, found.z_q

    def gradient(function: Callable) -> tuple:
        (value, z_q), gradients = jax.value_and_grad(function, has_aux=True)(params)
        return float(value), np.asarray(z_q), gradients

    results = [gradient(f) for f in (*(partial(by_form, form) for form in FORMS.values()), by_layer)]

    wide = {name: weight.astype(np.float64) for name, weight in params.items()}
    z = x.astype(np.float64) @ wide["encoder"]
    indices = reference.nearest(x @ params["encoder"], params["codes"])
    q = wide["codes"][indices]
    to_y = 2 * (q @ wide["decoder"] - target) / target.size
    of_z, of_codes = reference.losses_gradient(z, wide["codes"], indices, 0.25)
    by_hand = {"encoder": x.T @ (to_y @ wide["decoder"].T + of_z), "codes": of_codes, "decoder": q.T @ to_y}
    for value, z_q, gradients in results:
        assert value == pytest.approx(results[0][0], rel=1e-6)
        assert np.array_equal(z_q, params["codes"][indices])
        for name, expected in by_hand.items():
            np.testing.assert_allclose(gradients[name], results[0][2][name], rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(gradients[name], expected, rtol=2e-5, atol=1e-7)


def test_values_are_codes_where_the_usual_line_is_not() -> None:
    z, e = jnp.asarray(normal(100, 8)), jnp.asarray(normal(100, 8, seed=1))
    for form in FORMS.values():
        assert np.array_equal(jax.jit(form)(z, e), e)
    assert 0.1 < float(jnp.mean(z + lax.stop_gradient(e - z) != e)) < 0.6


def test_a_codebook_gets_no_gradient_and_an_array_does() -> None:
    z, codes = jnp.asarray(normal(N, D)), jnp.asarray(normal(K, D, seed=1))
    state = codebook_of(np.asarray(codes))

    def loss(codes: jax.Array, learns: bool) -> jax.Array:
        found = vqkit.jax.quantize(codes if learns else state._replace(codes=codes), z)
        return found.losses.total + found.losses.codebook + found.z_q.sum() + found.statistics.sums.sum()

    assert not jax.grad(loss)(codes, False).any()
    expected = 2 * reference.losses_gradient(z, codes, reference.nearest(z, codes), 0.0)[1]
    np.testing.assert_allclose(jax.grad(loss)(codes, True), expected, rtol=1e-5, atol=1e-7)


def test_a_gradient_is_summed_in_float32() -> None:
    """Of a codebook in bfloat16, in which a sum of equal terms stalls at 256 of them."""
    z, codes = jnp.full((1024, 1), 3.0), jnp.ones((1, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda codes: vqkit.jax.quantize(codes, z).losses.codebook))(codes)
    assert gradient.dtype == jnp.bfloat16 and float(gradient[0, 0]) == -4.0


def test_second_derivatives() -> None:
    """``d^2 commitment / dz^2 = 2 beta/(N D)`` on the diagonal; of a cube through the estimator, 6 z_q."""
    z, codes = jnp.asarray(normal(2, 3)), jnp.asarray(normal(6, 3, seed=1))
    of_loss = jax.jit(jax.hessian(lambda z: vqkit.jax.quantize(codes, z, commitment=0.5).losses.commitment))(z)
    np.testing.assert_allclose(of_loss.reshape(6, 6), np.eye(6) * 2 * 0.5 / 6, atol=1e-7)
    e = vqkit.jax.look_up(codes, search(z, codes))
    for form in (lambda z, e: vqkit.jax.quantize(codes, z).z_q, *FORMS.values()):
        gradient = jax.grad(lambda z, form=form: jnp.sum(form(z, e) ** 3))
        second = jax.jit(jax.grad(lambda z, gradient=gradient: gradient(z).sum()))(z)
        np.testing.assert_allclose(second, 6 * e, rtol=1e-5)


def test_forward_mode() -> None:
    """The derivative in forward mode is the transpose of that in reverse."""
    z, tangent, g = (jnp.asarray(normal(N, D, seed=seed)) for seed in range(3))
    codes = jnp.asarray(normal(K, D, seed=3))

    def z_q(z: jax.Array) -> jax.Array:
        return vqkit.jax.quantize(codes, z, estimator=vqkit.RotationTrick(max_gain=2.0)).z_q

    pushed = jax.jvp(z_q, (z,), (tangent,))[1]
    pulled = reference.rotation_trick(g, z, reference.look_up(codes, reference.nearest(z, codes)), max_gain=2.0)
    np.testing.assert_allclose(jnp.sum(g * pushed), np.sum(pulled * tangent), rtol=1e-5)


# --- learning -----------------------------------------------------------------------------------------------------


def test_idle_codes_keep_their_bits_under_jit() -> None:
    """For 2,000 steps, after which n has underflowed; decayed sums are NaN under XLA after 850. Then it is chosen."""
    rule = vqkit.EMA(decay=0.9)
    start = codebook_of(np.array([[0.0, 0.0], [0.1, 1 / 3], [-0.0, 1e3]], np.float32))
    z = normal(16, 2) * np.float32(0.1)

    @jax.jit
    def train(codebook: vqkit.jax.Codebook, z: jax.Array, steps: int) -> vqkit.jax.Codebook:
        def step(_: int, codebook: vqkit.jax.Codebook) -> vqkit.jax.Codebook:
            statistics = vqkit.jax.quantize(codebook, z, mask=jnp.arange(16) < 15).statistics
            return vqkit.jax.update(codebook, statistics, rule=rule)

        return lax.fori_loop(0, steps, step, codebook)

    for steps in (1, 300, 2000):
        last = train(start, z, steps)
        assert last.codes[2].tobytes() == start.codes[2].tobytes() and np.isfinite(last.codes).all()
        assert int(last.idle[2]) == steps * 15
    assert float(last.n[2]) == 0
    z[:2], z[2:] = [[3, 990], [5, 994]], 0
    np.testing.assert_allclose(train(last, z, 1).codes[2], [4.0, 992.0], rtol=1e-6)


def test_ages_stop_at_the_greatest_integer() -> None:
    codes = normal(CODES, 4, seed=1)
    old = codebook_of(codes)._replace(idle=jnp.full(CODES, 2**31 - 3, jnp.int32))
    new = step(old, np.tile(codes[3], (64, 1)), ALL)  # one code is chosen, and one revived onto the only vector
    assert new.idle[3] == 0 and sorted(new.idle.tolist()) == [0, 0] + (CODES - 2) * [2**31 - 1]


def test_four_quarters_are_one_whole() -> None:
    z, codebook = jnp.asarray(normal(80, 4)), codebook_of(normal(CODES, 4, seed=1))
    z = z.at[60:].set(z[:20])
    call = jax.jit(partial(vqkit.jax.quantize, sample=6))
    parts = [call(codebook, part).statistics for part in jnp.split(z, 4)]
    merge = jax.jit(vqkit.jax.merge)
    merged = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
    whole = call(codebook, z).statistics
    assert same((merged.counts, merged.sample, merged.hashes), (whole.counts, whole.sample, whole.hashes))
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="first samples 6 vectors, second 2: quantize both with one sample="):
        vqkit.jax.merge(whole, whole._replace(sample=whole.sample[:2], hashes=whole.hashes[:2]))


def test_the_sample_is_of_distinct_finite_unmasked_vectors() -> None:
    """Whatever their order; another one in the next step; over steps each as likely as any other."""
    rows = normal(10, 3)
    rows[0], rows[1] = np.array([1, 2, 2**-20]), np.array([-1, -2, 2**-20])
    z = np.concatenate([rows, rows[::-1], rows[:3] * [[1], [np.nan], [9]]]).astype(np.float32)
    mask, codebook = np.arange(23) != 22, codebook_of(normal(CODES, 3, seed=1))

    @jax.jit
    def sample(z: jax.Array, mask: jax.Array, step: jax.Array) -> jax.Array:
        return vqkit.jax.quantize(codebook._replace(steps=step), z, mask=mask, sample=12).statistics.sample

    drawn, order = np.asarray(sample(z, mask, 0)), np.random.default_rng(0).permutation(23)
    assert np.array_equal(np.unique(drawn[:10], axis=0), np.unique(rows, axis=0)) and not drawn[10:].any()
    assert np.array_equal(drawn, sample(z[order], mask[order], 0))
    firsts = np.asarray(jax.vmap(lambda step: sample(z, mask, step)[0])(jnp.arange(2000)))
    times = np.unique(firsts, axis=0, return_counts=True)[1]
    assert len(times) == 10 and times.min() > 140 and times.max() < 260  # 200 each, give or take 13


# --- devices ------------------------------------------------------------------------------------------------------


sharded = jax.jit(
    jax.shard_map(
        partial(learn, axis_name="data"), mesh=Mesh(jax.devices()[:2], ("data",)),
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")), out_specs=PartitionSpec(),
    )
)  # fmt: skip


@pytest.mark.parametrize("empty", [False, True])
def test_two_devices_are_one(empty: bool) -> None:
    """With a revival in it; to rounding as one device with the whole batch, to the bit as each other."""
    assert len(jax.devices()) >= 2, "run with XLA_FLAGS=--xla_force_host_platform_device_count=2"
    one = two = start = codebook_of(normal(CODES, 4, seed=1) * 3)
    mask = np.arange(64) < (32 if empty else 50)  # with 32 the second device has nothing
    for z in normal(4, 64, 4):
        z[40:48] = z[:8]
        one, two = step(one, z, mask), sharded(two, z, mask)
        for array in two:
            first, second = array.addressable_shards
            assert np.asarray(first.data).tobytes() == np.asarray(second.data).tobytes()
        for name, expected, found in zip(one._fields, one, two, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (np.abs(np.asarray(one.codes - start.codes)) > 1).any(), "no code was revived"


def test_two_devices_have_one_gradient() -> None:
    mesh, data = Mesh(jax.devices()[:2], ("data",)), PartitionSpec("data")
    z, codes = normal(64, 4), normal(8, 4, seed=1)

    def loss(codes: jax.Array, z: jax.Array) -> jax.Array:
        found = vqkit.jax.quantize(codes, z, estimator=vqkit.RotationTrick())
        return found.loss + jnp.mean(found.z_q**2)

    def averaged(codes: jax.Array, z: jax.Array) -> jax.Array:
        return lax.pmean(jax.grad(loss)(lax.pcast(codes, "data", to="varying"), z), "data")

    specs = {"in_specs": (PartitionSpec(), data), "out_specs": PartitionSpec()}
    found = jax.jit(jax.shard_map(averaged, mesh=mesh, **specs))(codes, z)
    np.testing.assert_allclose(found, jax.jit(jax.grad(loss))(codes, z), rtol=1e-5, atol=1e-7)
