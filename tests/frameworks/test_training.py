"""Ten training steps end where NumPy's do, in every framework: so all frameworks agree."""

from __future__ import annotations

import numpy as np
import pytest

import vqkit
from tests.frameworks import trainer
from tests.frameworks.adapter import Adapter, Trained
from tests.frameworks.cases import D, K, N, close, normal
from vqkit import reference

WIDTH = 7
ESTIMATORS = {
    "straight-through": (vqkit.StraightThrough(), reference.straight_through),
    "rotation": (vqkit.RotationTrick(), reference.rotation_trick),
}
UPDATES = {"gradient": vqkit.Gradient(), "ema": vqkit.EMA(0.8), "frozen": vqkit.Frozen()}
RATES = {"sgd": 0.5, "adam": 0.01}


def task() -> tuple[np.ndarray, dict[str, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Codes, weights and ten batches of 3 x 16 tokens with their targets."""

    def draw(*shape: int, seed: int) -> np.ndarray:
        return normal(*shape, seed=seed, dtype="float64")

    weights = {
        "encoder": 0.5 * draw(WIDTH, D, seed=1),
        "encoder_bias": 0.1 * draw(D, seed=2),
        "decoder": 0.5 * draw(D, WIDTH, seed=3),
        "decoder_bias": 0.1 * draw(WIDTH, seed=4),
    }
    batches = [(x, np.tanh(x)) for x in (draw(3, N // 3, WIDTH, seed=10 + step) for step in range(10))]
    return draw(K, D, seed=5), weights, batches


def both(framework: Adapter, steps: int, update: str, estimator: str, optimizer: str, rate: float, dtype: str):
    codes, weights, batches = task()
    batches = batches[:steps]
    slots = {"update": UPDATES[update], "optimizer": optimizer, "rate": rate}
    slot, pull_back = ESTIMATORS[estimator]
    flat = [(x.reshape(-1, WIDTH), target.reshape(-1, WIDTH)) for x, target in batches]
    expected = trainer.train(codes, weights, flat, pull_back=pull_back, **slots)
    return codes, framework.train(codes, weights, batches, estimator=slot, dtype=dtype, **slots), expected


def apart(found: Trained, expected: Trained) -> dict[str, float]:
    pairs = {"codes": (found.codes, expected.codes)}
    pairs |= {name: (found.weights[name], expected.weights[name]) for name in expected.weights}
    return {name: float(np.abs(a - b).max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize(
    "update, optimizer, estimator",
    [("gradient", "sgd", "straight-through"), ("gradient", "adam", "rotation"),
     ("ema", "sgd", "rotation"), ("ema", "adam", "straight-through")],
)  # fmt: skip
def test_ten_steps(framework: Adapter, update: str, optimizer: str, estimator: str) -> None:
    """To 1e-6 in float64; in float32, where there is no other, to 1e-4: roundings of 6e-8, sums of 48, ten steps."""
    dtype = framework.dtypes[-1]
    codes, found, expected = both(framework, 10, update, estimator, optimizer, RATES[optimizer], dtype)
    assert np.sum(np.abs(expected.codes - codes).max(1) > 1e-2) > K / 2, "the codebook hardly learnt"
    for name, error in apart(found, expected).items():
        assert error <= (1e-6 if dtype == "float64" else 1e-4), f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("update", UPDATES)
def test_gradients_through_encoder_and_decoder(framework: Adapter, update: str, estimator: str, dtype: str) -> None:
    """A step of plain gradient descent at rate 1 subtracts the gradient; each against its own largest entry."""
    codes, found, expected = both(framework, 1, update, estimator, "sgd", 1.0, dtype)
    before = task()[1]
    for name, weight in before.items():
        close(
            found.weights[name] - weight, expected.weights[name] - weight, dtype, f"the gradient of {name}", terms=200
        )
    if update == "frozen":
        assert (found.codes == codes.astype(dtype)).all()
    else:
        close(found.codes - codes, expected.codes - codes, dtype, "the step of the codebook", terms=200)
