"""A VQ-VAE of handwritten digits in Keras:  python keras_mnist.py [t10k-images-idx3-ubyte.gz] [--steps 1000]

Takes an idx file, gzipped or not, or else scikit-learn's digits. Prints error and perplexity of digits that were held
out, writes a picture of them with their reconstructions, and the model. Works on any backend (KERAS_BACKEND=jax).
pip install 'vqkit[tensorflow]' scikit-learn matplotlib.
"""

import argparse
import gzip
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import vqkit.keras
from vqkit.models import Patchwise

BATCH, CODES = 64, 128


def images_of(path: str | None) -> np.ndarray:
    """Digits (N, H, W, 1) in [0, 1], white on black."""
    if path is None:
        return (load_digits().images / 16).astype("float32")[..., None]
    data = Path(path).read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if data[:4] != b"\0\0\x08\x03":  # uint8, three dimensions
        raise SystemExit(f"{path} holds no images in the idx format; MNIST's labels are in a file of their own.")
    shape = *np.frombuffer(data, ">u4", 3, offset=4), 1
    return np.frombuffer(data, np.uint8, offset=16).reshape(shape).astype("float32") / 255


def save_picture(path: str, originals: np.ndarray, reconstructions: np.ndarray) -> None:
    _, rows = plt.subplots(2, len(originals), figsize=(len(originals), 2.2), layout="constrained")
    for axes, image in zip(rows.flat, np.concatenate([originals, reconstructions]), strict=True):
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.axis("off")
    plt.savefig(path, dpi=100, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="?", help="an idx file; without it, scikit-learn's digits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", default="digits", help="OUT.png and OUT.keras are written")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).permutation(images_of(options.images))
    held_out, images = images[: len(images) // 10], images[len(images) // 10 :][: options.steps * BATCH]
    architecture = Patchwise(stride=2 if images.shape[1] == 8 else 4, hidden=32)  # one code for 2x2 or 4x4 pixels
    model = vqkit.keras.VQVAE.of(channels=1, architecture=architecture, dim=16, codebook_size=CODES, seed=0)
    model.compile(keras.optimizers.Adam(2e-3))
    model.fit(images, batch_size=BATCH, epochs=max(1, round(options.steps * BATCH / len(images))), verbose=2)

    indices = keras.ops.convert_to_numpy(model.encode(held_out))  # (N, H/stride, W/stride), each from 0 to 127
    reconstructions = keras.ops.convert_to_numpy(model.decode(indices))
    p = np.unique(indices, return_counts=True)[1] / indices.size
    perplexity = np.exp(-np.sum(p * np.log(p)))
    print(f"mean squared error on {len(held_out)} held-out digits: {np.mean((reconstructions - held_out) ** 2):.5f}")
    print(
        f"of the mean image: {np.mean((images.mean(0) - held_out) ** 2):.5f}; perplexity: {perplexity:.1f} of {CODES}"
    )
    save_picture(f"{options.out}.png", held_out[:10], reconstructions[:10])
    model.save(f"{options.out}.keras")


if __name__ == "__main__":
    main()
