"""A small VQ-VAE with equinox on real digits: `python jax_equinox.py train-images-idx3-ubyte.gz`, or scikit-learn's.

pip install 'vqkit[jax]' equinox optax scikit-learn. The codebook learns by its gradient: it is a field of the model.
"""

import gzip
import sys

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import vqkit.jax
from vqkit.reference import perplexity


class Model(eqx.Module):
    layers: list
    codes: jax.Array

    def __init__(self, key):
        keys, conv, up = jax.random.split(key, 5), eqx.nn.Conv2d, eqx.nn.ConvTranspose2d
        self.layers = [conv(1, 32, 4, 2, 1, key=keys[0]), conv(32, 8, 1, key=keys[1])]
        self.layers += [conv(8, 32, 3, 1, 1, key=keys[2]), up(32, 1, 4, 2, padding=1, key=keys[3])]
        self.codes = vqkit.jax.init(keys[4], codebook_size=64, dim=8).codes

    def __call__(self, x):
        down, out, into, up = map(jax.vmap, self.layers)
        found = vqkit.jax.quantize(self.codes, out(jax.nn.relu(down(x))).transpose(0, 2, 3, 1))  # channels last
        return up(jax.nn.relu(into(found.z_q.transpose(0, 3, 1, 2)))), found


def objective(model, x):
    y, found = model(x)
    return ((y - x) ** 2).mean() + found.losses.total


@eqx.filter_jit
def step(model, memory, x):
    moves, memory = optimizer.update(eqx.filter_grad(objective)(model, x), memory)
    return eqx.apply_updates(model, moves), memory


if len(sys.argv) > 1:
    with gzip.open(sys.argv[1]) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:10_000] / 255
else:
    images = load_digits().images[:, None] / 16
held_out, images, rng = images[:500], images[500:], np.random.default_rng(0)
model, optimizer = Model(jax.random.key(0)), optax.adam(3e-3)
memory = optimizer.init(eqx.filter(model, eqx.is_array))
for number in range(501):
    if number % 500 == 0:
        y, found = eqx.filter_jit(model)(held_out)
        used = perplexity(np.bincount(found.indices.ravel(), minlength=64))
        print(f"step {number}: MSE {((y - held_out) ** 2).mean():.4f}, perplexity {used:.1f} of 64")
    model, memory = step(model, memory, images[rng.integers(0, len(images), 64)])
