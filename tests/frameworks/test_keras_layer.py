"""``vqkit.keras.VectorQuantizer`` as a Keras layer, on every backend: models, fit, policies, masks, files, metrics."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import vqkit
import vqkit.keras
from vqkit import reference
from vqkit.keras import VectorQuantizer

B, T, D, K = 8, 6, 3, 16
N = B * T  # of one size, because JAX compiles a search for each
BACKEND = keras.backend.backend()
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy(x) -> np.ndarray:
    return np.array(ops.convert_to_numpy(x))


def weights(layer: VectorQuantizer) -> dict[str, np.ndarray]:
    return {w.name: numpy(w) for w in layer.weights}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


class Subclassed(keras.Model):
    def __init__(self, **slots) -> None:
        super().__init__()
        self.encoder = keras.layers.Dense(4)
        self.quantizer = VectorQuantizer(K, start=vqkit.Normal(), **slots)
        self.decoder = keras.layers.Dense(D)

    def call(self, x, training=None):
        return self.decoder(self.quantizer(self.encoder(x), training=training))


def sequential(**slots) -> keras.Model:
    quantizer = VectorQuantizer(K, start=vqkit.Normal(), **slots)
    return keras.Sequential([keras.Input((T, D)), keras.layers.Dense(4), quantizer, keras.layers.Dense(D)])


def functional(**slots) -> keras.Model:
    x = keras.Input((T, D))
    z_q = VectorQuantizer(K, start=vqkit.Normal(), **slots)(keras.layers.Dense(4)(x))
    return keras.Model(x, keras.layers.Dense(D)(z_q))


KINDS = {"sequential": sequential, "functional": functional, "subclassed": Subclassed}


def quantizer_of(model: keras.Model) -> VectorQuantizer:
    return next(layer for layer in model._flatten_layers() if isinstance(layer, VectorQuantizer))


# --- models and fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "update"),
    [
        ("sequential", vqkit.Gradient()),
        ("functional", vqkit.EMA(0.9)),
        ("subclassed", vqkit.EMA(0.9)),
        ("subclassed", vqkit.Frozen()),
    ],
)
def test_fit_trains_what_it_should(kind: str, update) -> None:
    keras.utils.set_random_seed(1)
    model, x = KINDS[kind](update=update), normal(4 * B, T, D)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model(x[:B])
    before = weights(quantizer_of(model))
    history = model.fit(x, x, batch_size=B, epochs=3, verbose=0).history
    after = weights(quantizer_of(model))
    assert (after["codebook"] != before["codebook"]).any() == (not isinstance(update, vqkit.Frozen))
    assert history["loss"][-1] < history["loss"][0]
    assert {"perplexity", "usage"} < history.keys()
    assert ("codebook_loss" in history) == (not update.by_gradient)
    assert int(after["steps"]) == 12
    assert 0 < after["idle"].max() <= 12 * N


def test_validation_and_prediction_are_no_training() -> None:
    model, x = functional(update=vqkit.EMA(0.9), revival=vqkit.Reseed(0.1)), normal(B, T, D)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = weights(quantizer_of(model))
    assert model.evaluate(x, x, verbose=0, return_dict=True)["perplexity"] > 1
    model.predict(x, verbose=0)
    assert same(weights(quantizer_of(model)), before)
    assert model.fit(x, x, verbose=0, validation_data=(x, x)).history["val_usage"][0] > 0
    assert int(weights(quantizer_of(model))["steps"]) == 1


def test_figures_are_of_the_epoch_and_not_a_mean_over_batches() -> None:
    """Batches of one vector each have perplexity 1; all of them together have the data's."""
    codes, x = normal(K, D, seed=3), normal(40, D)
    model = keras.Sequential([keras.Input((D,)), VectorQuantizer(K, update=vqkit.Frozen(), start=vqkit.Given(codes))])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    figures = model.evaluate(x, x, batch_size=1, verbose=0, return_dict=True)
    indices = reference.nearest(x, codes)
    counts = np.bincount(indices, minlength=K)
    assert figures["perplexity"] == pytest.approx(reference.perplexity(counts), rel=1e-5)
    assert figures["usage"] == pytest.approx(reference.usage(counts), rel=1e-6)
    assert figures["codebook_loss"] == pytest.approx(reference.losses(x, codes, indices, 1.0)[0], rel=1e-5)
    again = model.evaluate(x[:1], x[:1], verbose=0, return_dict=True)  # each evaluation begins anew
    assert again["perplexity"] == pytest.approx(1.0)


def test_a_layer_with_a_name_puts_it_before_its_figures() -> None:
    model = keras.Sequential([keras.Input((D,)), VectorQuantizer(4, name="top"), VectorQuantizer(4, name="bottom")])
    model.compile("sgd", "mse")
    history = model.fit(normal(8, D), normal(8, D), verbose=0).history
    assert {"top_perplexity", "bottom_perplexity", "top_usage", "bottom_usage"} < history.keys()


@pytest.mark.parametrize("training", [True, False, None])
@pytest.mark.parametrize("trainable", [True, False])
def test_only_a_training_call_of_a_trainable_layer_learns(training: bool | None, trainable: bool) -> None:
    layer = VectorQuantizer(K, D, update=vqkit.EMA(0.5), start=vqkit.Normal(), trainable=trainable)
    layer.build((None, D))
    before = weights(layer)
    layer(normal(N, D), training=training)
    assert same(weights(layer), before) == (not (training and trainable))


def test_frozen_by_its_attribute_in_fit() -> None:
    model = sequential(update=vqkit.EMA(0.5))
    quantizer_of(model).trainable = False
    model.compile("sgd", "mse")
    before = weights(quantizer_of(model))
    model.fit(normal(B, T, D), normal(B, T, D), verbose=0)
    assert same(weights(quantizer_of(model)), before)


# --- policies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float64"])
def test_policies(policy: str) -> None:
    """z_q is the codes in the compute dtype; what learns and what is searched is float32 at least."""
    if BACKEND == "jax" and policy == "float64":
        pytest.skip("JAX has no float64 here (JAX_ENABLE_X64)")
    codes = normal(K, D, seed=3)
    layer = VectorQuantizer(K, update=vqkit.EMA(0.9), start=vqkit.Given(codes), dtype=policy)
    z_q = layer(normal(B, T, D), training=False)
    wide = "float64" if policy == "float64" else "float32"
    compute = keras.dtype_policies.get(policy).compute_dtype
    assert keras.backend.standardize_dtype(z_q.dtype) == compute
    assert {str(w.dtype) for w in layer.weights if w.name in ("codebook", "n", "codebook_usage")} == {wide}
    assert {keras.backend.standardize_dtype(loss.dtype) for loss in layer.losses} == {wide}
    rounded = numpy(ops.cast(ops.cast(ops.convert_to_tensor(normal(B, T, D)), compute), wide))
    indices = reference.nearest(rounded.reshape(-1, D), codes)
    assert (numpy(layer.encode(ops.cast(normal(B, T, D), compute))).reshape(-1) == indices).all()
    expected = numpy(ops.cast(ops.cast(ops.convert_to_tensor(codes[indices]), compute), "float32"))
    assert (numpy(ops.cast(z_q, "float32")).reshape(-1, D) == expected).all()
    assert (numpy(ops.cast(layer.decode(indices), "float32")) == expected).all()


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 here (JAX_ENABLE_X64)")
@pytest.mark.parametrize("update", [vqkit.EMA(0.9), vqkit.Gradient()])
def test_float64_vectors_in_a_float32_layer_keep_their_digits(update) -> None:
    """``quantized`` and ``encode`` take them as they are, where ``call`` makes them float32 first."""
    codes = normal(2, D, seed=3)
    z = codes.astype(np.float64).mean(0) + 1e-10 * normal(N, D)  # in float32 all of them are one
    layer = VectorQuantizer(2, start=vqkit.Given(codes), update=update, revival=vqkit.Reseed(0.1))
    indices = reference.nearest(z, codes)
    assert (numpy(layer.encode(z)) == indices).all() and len(set(indices)) == 2
    _, found, losses = layer.quantized(z, training=True)
    assert (numpy(found) == indices).all()
    assert numpy(losses.codebook) == pytest.approx(reference.losses(z, codes, indices, 1.0)[0], rel=1e-12)
    assert weights(layer)["codebook_usage"].tolist() == np.bincount(indices).tolist()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_model_trains(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model, x = sequential(), normal(4 * B, T, D)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        loss = model.fit(x, x, batch_size=B, epochs=4, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert loss[-1] < loss[0]


# --- masks --------------------------------------------------------------------------------------------------------


def test_a_mask_from_masking_and_from_embedding() -> None:
    """Keras hands it over; masked positions give zero and count nowhere."""
    x = normal(B, T, D)
    x[:, 4:] = 0
    layer = VectorQuantizer(K, update=vqkit.EMA(0.9), start=vqkit.Normal())
    model = keras.Sequential([keras.Input((T, D)), keras.layers.Masking(), layer])
    out = model(x, training=True)
    assert (numpy(out)[:, 4:] == 0).all() and (numpy(out)[:, :4] != 0).all()
    assert weights(layer)["codebook_usage"].sum() == B * 4
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    layer = VectorQuantizer(K, update=vqkit.EMA(0.9), start=vqkit.Normal())
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(5, D, mask_zero=True), layer])
    assert ((numpy(model(tokens, training=True)) == 0).all(-1) == (tokens == 0)).all()
    assert weights(layer)["codebook_usage"].sum() == 3


def test_a_mask_of_another_shape_is_named() -> None:
    layer = VectorQuantizer(K)
    with pytest.raises(ValueError, match=r"mask has shape \(8,\).*must be \(8, 6\) and bool"):
        layer.encode(normal(B, T, D), mask=np.ones(B, bool))
    with pytest.raises(ValueError, match="bool, True where a vector counts"):
        layer.encode(normal(B, T, D), mask=np.ones((B, T), np.float32))


# --- estimators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["stop_gradient", "custom_gradient"])
def test_values_are_codes_to_the_bit(spelling: str) -> None:
    z, z_q = normal(B, D), 1e-3 * normal(B, D, seed=1)
    straight_through = getattr(vqkit.keras, f"straight_through_{spelling}")
    assert (numpy(straight_through(ops.convert_to_tensor(z), ops.convert_to_tensor(z_q))) == z_q).all()
    usual = z + (z_q - z)
    assert (usual != z_q).any()


# --- revival ------------------------------------------------------------------------------------------------------


def reviving(after: float = 1.0, **slots) -> VectorQuantizer:
    codes = np.concatenate([normal(K - 4, D, seed=3), np.full((4, D), 100, np.float32)])
    return VectorQuantizer(K, update=vqkit.EMA(0.9), start=vqkit.Given(codes), revival=vqkit.Reseed(after), **slots)


def test_revival_does_not_depend_on_the_order_of_the_batch() -> None:
    x = normal(N, D)
    layers = [reviving(), reviving()]
    for batch, layer in zip((x, x[::-1].copy()), layers, strict=True):
        layer(batch, training=True)
    one, other = (weights(layer) for layer in layers)
    moved = one["codebook"][-4:]
    assert (moved == other["codebook"][-4:]).all()
    assert len({row.tobytes() for row in moved} & {row.tobytes() for row in x}) == 4  # onto four vectors of the batch
    assert (one["n"][-4:] == 0).all() and (one["idle"][-4:] == 0).all()
    again = reviving()
    again.build((None, D))
    again.steps.assign(1)
    again(x, training=True)
    assert (weights(again)["codebook"][-4:] != moved).any()  # another step draws others


def test_fewer_vectors_than_dead_codes_move_fewer() -> None:
    layer = reviving(after=0.1)
    x = np.repeat(normal(2, D), N // 2, 0)
    layer(x, training=True)
    before = np.full(D, 100, np.float32)
    moved = (weights(layer)["codebook"][-4:] != before).any(1).sum()
    assert moved <= 2
    layer(np.zeros((0, D), np.float32), training=True)
    assert int(weights(layer)["steps"]) == 1


def test_masked_vectors_revive_nothing() -> None:
    layer, x = reviving(), normal(N, D)
    x[24:] = 50
    layer(x, mask=np.arange(N) < 24, training=True)
    assert (weights(layer)["codebook"][-4:] < 40).all()


def test_what_the_jax_backend_cannot_revive_is_refused() -> None:
    if BACKEND != "jax":
        layer = VectorQuantizer(K, D, revival=vqkit.Reseed(1.0), start=vqkit.Given(np.full((K, D), 9.0)))
        layer(normal(N, D), training=True)
        assert (weights(layer)["codebook"] != 9).any()
        return
    with pytest.raises(ValueError, match=r"use update=EMA\(\) with it"):
        VectorQuantizer(K, D, revival=vqkit.Reseed())


# --- configs and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1.0, np.arange(K)])
def test_a_config_gives_the_layer_back(n) -> None:
    codes = normal(K, D, seed=3)
    layer = VectorQuantizer(
        K,
        update=vqkit.EMA(0.95),
        estimator=vqkit.RotationTrick(5.0),
        commitment=0.5,
        start=vqkit.Given(codes, n),
        revival=vqkit.Reseed(after=3.0, at_most=7),
        seed=4,
        name="codes",
        dtype="mixed_bfloat16",
        trainable=False,
    )
    layer(normal(N, D))
    again = VectorQuantizer.from_config(layer.get_config())
    again.build((None, D))
    assert again.get_config() == layer.get_config()
    assert (again.update, again.estimator, again.revival) == (layer.update, layer.estimator, layer.revival)
    assert same(weights(again), weights(layer))


@pytest.mark.parametrize(("kind", "update"), [("sequential", vqkit.Gradient()), ("functional", vqkit.EMA(0.9))])
def test_a_keras_file_holds_all(kind: str, update, tmp_path: Path) -> None:
    model, x = KINDS[kind](update=update), normal(4 * B, T, D)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, x, batch_size=B, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert same(weights(quantizer_of(loaded)), weights(quantizer_of(model)))
    assert (loaded.predict(x, verbose=0) == model.predict(x, verbose=0)).all()
    for each in (loaded, model):  # the optimizer's memory came along: both go on alike
        each.fit(x, x, batch_size=B, verbose=0, shuffle=False)
    assert same(weights(quantizer_of(loaded)), weights(quantizer_of(model)))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"update": "ema"}, r"update is 'ema'; it must be an object such as EMA\(decay=0.99\)"),
        ({"update": vqkit.EMA}, "it must be an object"),
        ({"start": vqkit.KMeans()}, "cluster_centers_"),
        ({"update": vqkit.Frozen(), "revival": vqkit.Reseed()}, r"use NoRevival\(\)"),
        ({"commitment": -1.0}, "commitment is -1.0"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"codebook_size": K, **arguments})


def test_shapes_and_dtypes_that_do_not_fit() -> None:
    layer = VectorQuantizer(K, 4)
    with pytest.raises(ValueError, match=r"dim=4 long.*or set dim=3"):
        layer(normal(N, D))
    with pytest.raises(ValueError, match=r"dim=4 long"):
        layer(keras.Input((D,)))
    with pytest.raises(ValueError, match="must be of a known length"):
        VectorQuantizer(K)(keras.Input((None,)))
    with pytest.raises(ValueError, match="must be floating"):
        layer.encode(np.ones((B, 4), np.int32))
    with pytest.raises(ValueError, match=r"array has shape \(3, 4\); with codebook_size=16 and dim=4"):
        layer.set_codebook(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="no codebook yet"):
        VectorQuantizer(K).decode([0])


def test_an_index_out_of_range_and_nan_are_refused() -> None:
    layer = VectorQuantizer(K, D)
    assert (numpy(layer.decode(np.array([[0, -1]])))[0, 1] == 0).all()
    for wrong in (K, -2, *([] if BACKEND == "jax" else [2**32])):  # JAX has no int64 here
        with pytest.raises(ValueError, match=r"outside -1\.\.15"):
            layer.decode(np.array([0, wrong]))
    with pytest.raises(ValueError, match="indices has dtype float32; it must be an integer"):
        layer.decode(np.zeros(2, np.float32))
    assert (numpy(layer.decode(np.uint8([3]))) == numpy(layer.codebook)[3]).all()
    x = normal(N, D)
    x[7, 1] = np.inf
    with pytest.raises(ValueError, match=r"NaN or infinity \(the first is in vector 7"):
        layer(x)
    layer(x, mask=np.arange(N) != 7)


def test_set_codebook_stays() -> None:
    layer, codes = VectorQuantizer(K, update=vqkit.EMA(0.9)), normal(K, D, seed=3)
    layer.set_codebook(codes)
    layer(normal(N, D))
    assert (weights(layer)["codebook"] == codes).all() and (weights(layer)["n"] == 1).all()
