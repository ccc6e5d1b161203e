"""Random crops, what augmentation does to them, and images as tensors."""

from __future__ import annotations

import hashlib
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vqkit.data import DataError, NoAugmentation, Photographic, RandomCrops, to_image, to_tensor

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose channels are row, column and a constant, so that a crop tells where it was taken."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, height)], axis=-1)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**70),
    st.integers(0, 2**40),
    st.integers(1, 9),
    st.lists(st.integers(9, 30), min_size=1, max_size=4),
)
def test_a_batch_depends_on_seed_and_step_only(seed: int, step: int, size: int, sides: list[int]) -> None:
    images = [coordinates(side, side + 3) for side in sides]
    crops = RandomCrops(images, size, 5, seed, [Photographic(exposure=0, balance=0, saturation=1)])
    batch = crops.batch_at(step)
    crops.batch_at(step + 1)
    assert torch.equal(batch, crops.batch_at(step))
    assert torch.equal(
        batch, RandomCrops(images, size, 5, seed, [Photographic(exposure=0, balance=0, saturation=1)]).batch_at(step)
    )
    assert batch.dtype == torch.float32 and batch.shape == (5, 3, size, size) and batch.is_contiguous()
    for crop in batch:  # each is a window of an image, perhaps mirrored
        pixels = to_image(crop)
        if pixels[0, 0, 1] > pixels[0, -1, 1]:
            pixels = pixels[:, ::-1]
        top, left, height = pixels[0, 0].tolist()
        np.testing.assert_array_equal(pixels, coordinates(height, height + 3)[top : top + size, left : left + size])


def test_steps_and_seeds_differ() -> None:
    batches = [RandomCrops([PHOTO], 4, 16, seed).batch_at(step) for seed in (0, 1) for step in (0, 1)]
    assert len({batch.numpy().tobytes() for batch in batches}) == 4


def test_every_position_of_every_image_is_equally_likely() -> None:
    images = [coordinates(8, 9), coordinates(10, 7), coordinates(6, 6)]
    pixels = RandomCrops(images, 6, 120_000, seed=3).batch_at(0)[:, :, 0, 0].mul(255).round().long()
    keys, counts = torch.unique(pixels, dim=0, return_counts=True)
    assert len(keys) == 3 * 4 + 5 * 2 + 1
    expected = 120_000 / len(keys)
    # Chi squared with 22 degrees of freedom: above 60 once in 50,000 draws, and the draw is fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 60


def test_augmentations_are_applied_in_order_and_flip_half() -> None:
    plain = RandomCrops([PHOTO], 8, 400, seed=0).batch_at(0)
    flipped = RandomCrops(
        [PHOTO], 8, 400, seed=0, augment=[Photographic(exposure=0, balance=0, saturation=1)]
    ).batch_at(0)
    same = (plain == flipped).flatten(1).all(1)
    assert torch.equal(flipped[~same], plain[~same].flip(-1)) and 150 < int(same.sum()) < 250
    seen = RandomCrops(
        [PHOTO], 8, 1, 0, [lambda crop, rng: crop // 2, lambda crop, rng: crop + np.uint8(100)]
    ).batch_at(0)
    assert seen.min() >= 100 / 255 and seen.max() <= 227.5 / 255


def test_random_crops_are_fast() -> None:
    crops = RandomCrops([np.zeros((500, 500, 3), np.uint8)] * 6, 64, 32, 0)
    times = []
    for step in range(50):
        start = time.perf_counter()
        crops.batch_at(step)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


def test_images_smaller_than_the_crop_are_refused() -> None:
    images = [coordinates(40, 30), coordinates(13, 20), coordinates(40, 15)]
    with pytest.raises(DataError, match=r"image\[1\] is 20 x 13 pixels, but crops are 16 x 16; .* Images.for_crops"):
        RandomCrops(images, 16, 1, 0)
    assert RandomCrops(images, 13, 64, 0).batch_at(0).shape == (64, 3, 13, 13)


def test_the_bits_of_a_batch_stay() -> None:
    """Drawn by version 0.2 of this package: a run that is resumed by a later one must see the same crops."""
    images = [coordinates(40, 30), coordinates(13, 20), coordinates(40, 15)]
    batch = RandomCrops(images, 12, 6, seed=11, augment=[Photographic()]).batch_at(4)
    assert hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:16] == "4c8a193d68ae1a4d"


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_to_image_undoes_to_tensor(image: np.ndarray) -> None:
    tensor = to_tensor(image)
    assert tensor.shape == (1, image.shape[2], *image.shape[:2]) and tensor.min() >= 0 and tensor.max() <= 1
    np.testing.assert_array_equal(to_image(tensor), image)
    np.testing.assert_array_equal(to_image(tensor.double()), image)


def test_to_image_rounds_clips_and_refuses() -> None:
    values = torch.tensor([-math.inf, -1, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.5, math.inf])
    assert to_image(values.view(1, 1, 1, -1).requires_grad_()).ravel().tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert to_image(torch.full((3, 1, 1), 0.5, dtype=torch.bfloat16)).tolist() == [[[128, 128, 128]]]
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.full((1, 2, 2), math.nan))


def test_exposure_balance_and_saturation_by_hand() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    for seed in range(4):
        drawn = np.random.default_rng(seed)
        flip, exposure, balance = drawn.random() < 0.5, drawn.uniform(-0.5, 0.5), drawn.uniform(-0.3, 0.3, 3)
        values = 255 * (crop / 255.0) ** np.exp(exposure + balance)
        gray = values.mean(axis=2, keepdims=True)
        expected = gray + drawn.uniform(0.1, 1) * (values - gray)
        result = Photographic(exposure=0.5, balance=0.3, saturation=0.1)(crop, np.random.default_rng(seed))
        assert result.dtype == np.uint8
        assert np.abs(result - (expected[:, ::-1] if flip else expected)).max() < 0.501


def test_gray_crops_stay_gray() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    result = Photographic()(ramp, np.random.default_rng(0))
    assert result.shape == ramp.shape
    rows = result[..., 0].astype(int)
    assert (np.diff(rows) >= 0).all() or (np.diff(rows) <= 0).all()


def test_no_augmentation_leaves_the_crop() -> None:
    assert NoAugmentation()(PHOTO, np.random.default_rng(0)) is PHOTO


def test_an_augmentation_out_of_range_is_refused() -> None:
    for name, most in (("exposure", 3), ("balance", 3), ("saturation", 1)):
        with pytest.raises(ValueError, match=f"{name} is -1; it must be between 0 and {most}"):
            Photographic(**{name: -1})
