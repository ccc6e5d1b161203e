"""What loading costs: opening, crops of images in memory, and images that are decoded whenever a crop is taken.

    python -m benchmarks.loading [DATA] [--rounds N] [--workers N]

DATA is what `vqkit train` takes, best an archive of many small images; without it 10,000 drawn ones. For what does not
fit in memory the bundled photos are written as JPEGs again and again, 240 of them, into a temporary folder: 0.2 GB of
pixels, of which `memory` allows an eighth. Rows are medians over rounds in which the contenders take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from vqkit.data import RandomCrops, load, open_images

COPIES, MEMORY, CROP, BATCH, STEPS = 40, 2**25, 64, 32, 8


def in_memory(data: str | None, rounds: int, folder: Path) -> None:
    if data is None:
        data = str(folder / "drawn.npy")
        np.save(data, np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8))
    began = perf_counter()
    images = open_images(data)
    print(f"opened in {perf_counter() - began:.1f} s: {images.description}")
    side = int(images.images.sizes.min())
    times: dict[int, list[float]] = {32: [], 64: []}
    contenders = {batch: RandomCrops(images.images, side, batch, seed=0) for batch in times}
    for step in range(rounds):
        for batch, crops in contenders.items():
            began = perf_counter()
            crops.batch_at(step)
            times[batch].append(perf_counter() - began)
    for batch, taken in times.items():
        print(f"in memory, {batch} crops of {side} x {side}: {1e3 * median(taken):.3f} ms")


def beyond_memory(rounds: int, workers: int, folder: Path) -> None:
    photos = open_images()
    pixels = 0
    for i in range(COPIES):
        for name, photo in zip(photos.names, photos.images, strict=True):
            Image.fromarray(np.roll(photo, 8 * i, axis=1)).save(folder / f"{i:02}{name}.jpg", quality=90)
            pixels += photo.nbytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = perf_counter()
    images = open_images(folder, memory=MEMORY)
    opening = perf_counter() - began
    crops = RandomCrops(images.images, CROP, BATCH, seed=0)
    times: dict[int, list[float]] = {0: [], workers: []}
    for i in range(rounds // 100 or 1):
        for number, taken in times.items():
            batches = load(crops, range(i * 100, i * 100 + STEPS + 4 * number), number)
            for _ in range(4 * number):  # until all workers are at it
                next(batches)
            began = perf_counter()
            for _ in range(STEPS):
                next(batches)
            taken.append((perf_counter() - began) / STEPS)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print(f"beyond memory: {len(images.images)} photos, {pixels / 2**20:.0f} MiB of pixels, opened in {opening:.1f} s")
    print(f"  with memory={MEMORY / 2**20:.0f} MiB the peak of resident memory grew by {grown:.0f} MiB")
    for number, taken in times.items():
        print(f"  {BATCH} crops of {CROP} x {CROP}, {number} workers: {1e3 * median(taken):.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        beyond_memory(arguments.rounds, arguments.workers, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        in_memory(arguments.data, arguments.rounds, Path(folder))
