"""Recipes, and what ``--set key=value`` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vqkit.codebooks import NoRevival, Uniform
from vqkit.data import NoAugmentation, Photographic
from vqkit.models import Convolutional, ModelConfig
from vqkit.models.objects import SLOTS, nearest_names, parse_object
from vqkit.training.schedules import Constant, Cosine


@dataclass(frozen=True)
class Config:
    """One training run: the model, the crops and the optimizer.

    ``reconstruction = MSE / variance of the training pixels``, and the objective adds ``losses.total``. AdamW.
    ``accumulate`` splits each batch into that many parts, whose gradients add up: less memory, the same step.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 2000
    batch: int = 16
    crop: int = 32
    augmentation: Photographic | NoAugmentation = Photographic()
    learning_rate: float = 2e-3
    schedule: Cosine | Constant = Cosine()
    weight_decay: float = 0.0
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "accumulate", "log_every", "save_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a whole number of at least 1.")
        for name in ("weight_decay", "seed"):
            if not 0 <= getattr(self, name) < 2**63:  # the seed is kept in 64 bits
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 2^63.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive, for example 0.002.")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate is {self.accumulate}; it must divide the batch of {self.batch}.")
        stride = self.model.architecture.stride
        if self.crop % stride:
            down = max(self.crop // stride, 1) * stride
            raise ValueError(
                f"crop is {self.crop}; it must be a multiple of the architecture's stride {stride}: {down}."
            )

    def to_json(self) -> dict[str, Any]:
        """Every field but the model's, as ``--set`` would write it."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        return {k: v if isinstance(v, (int, float)) else repr(v) for k, v in values.items()}


RECIPES: dict[str, Config] = {
    "photos": Config(),
    "digits": Config(
        ModelConfig(channels=1, architecture=Convolutional(hidden=64), dim=16, codebook_size=128),
        steps=1000,
        batch=64,
        crop=28,
        augmentation=NoAugmentation(),
    ),
    # Of the public reference (the example of Sonnet 2), but for its Laplace smoothing and zero-debias.
    "cifar10": Config(
        ModelConfig(architecture=Convolutional(), dim=64, start=Uniform(110.85), revival=NoRevival()),
        steps=10_000,
        batch=32,
        augmentation=NoAugmentation(),
        learning_rate=3e-4,
        schedule=Constant(),
        log_every=100,
        save_every=500,
    ),
}

_SLOTS = SLOTS | {"augmentation": (Photographic, NoAugmentation), "schedule": (Cosine, Constant)}


def resolve(recipe: str | Config, settings: Sequence[str] = ()) -> Config:
    """The recipe of that name, or a configuration, with every ``key=value`` applied.

    >>> resolve("photos", ["steps=500", "update=EMA(decay=0.95)"]).model.update
    EMA(decay=0.95)

    Raises:
        ValueError: an unknown recipe or key (the nearest names are offered), or a value that does not fit.
    """
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"there is no recipe {recipe!r}: {nearest_names(recipe, list(RECIPES))}")
    config = RECIPES[recipe] if isinstance(recipe, str) else recipe
    types = {field.name: field.type for cls in (Config, ModelConfig) for field in fields(cls)}
    keys = sorted(types.keys() - {"model", "channels"})
    outer: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} is no key=value (DATA stands before --set); keys: {', '.join(keys)}")
        if key not in keys:
            raise ValueError(f"--set has no key {key!r}: {nearest_names(key, keys)}")
        value = parse_object(key, text, _SLOTS) if key in _SLOTS else _number(key, text, str(types[key]))
        (outer if hasattr(config, key) else inner)[key] = value
    return replace(config, model=replace(config.model, **inner), **outer)


def _number(key: str, text: str, kind: str) -> int | float:
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        wanted = "a whole number" if kind == "int" else "a number"
        raise ValueError(f"{key} is {text!r}; it must be {wanted}.") from None
