"""A small VQ-VAE with equinox on real digits: `python jax_equinox.py train-images-idx3-ubyte.gz`, or scikit-learn's.

pip install 'vqkit[jax]' equinox optax scikit-learn. The codebook learns by its gradient: it is a field of the model.
"""

import gzip
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import vqkit.jax
from vqkit.reference import perplexity

CODES, DIM = 64, 8


class Model(eqx.Module):
    layers: list
    codes: jax.Array

    def __init__(self, key):
        keys, conv, up = jax.random.split(key, 5), eqx.nn.Conv2d, eqx.nn.ConvTranspose2d
        self.layers = [conv(1, 32, 4, 2, 1, key=keys[0]), conv(32, DIM, 1, key=keys[1])]
        self.layers += [conv(DIM, 32, 3, 1, 1, key=keys[2]), up(32, 1, 4, 2, padding=1, key=keys[3])]
        self.codes = vqkit.jax.init(keys[4], codebook_size=CODES, dim=DIM).codes

    def __call__(self, x):
        down, out, into, up = map(jax.vmap, self.layers)
        z = jnp.moveaxis(out(jax.nn.relu(down(x))), 1, -1)  # channels last, as the quantizer wants them
        found = vqkit.jax.quantize(self.codes, z)
        return up(jax.nn.relu(into(jnp.moveaxis(found.z_q, -1, 1)))), found


def objective(model, x):
    y, found = model(x)
    return ((y - x) ** 2).mean() + found.losses.total


@eqx.filter_jit
def step(model, memory, x):
    moves, memory = optimizer.update(eqx.filter_grad(objective)(model, x), memory)
    return eqx.apply_updates(model, moves), memory


def report(when, model, x):
    y, found = eqx.filter_jit(model)(x)
    used = perplexity(np.bincount(found.indices.ravel(), minlength=CODES))
    print(f"{when}: MSE {((y - x) ** 2).mean():.4f}, perplexity {used:.1f} of {CODES}")


if len(sys.argv) > 1:
    file = Path(sys.argv[1]).read_bytes()
    file = gzip.decompress(file) if sys.argv[1].endswith(".gz") else file
    images = np.frombuffer(file, np.uint8, offset=16).reshape(-1, 1, 28, 28) / 255
else:
    images = load_digits().images[:, None] / 16
images, rng = images[:10_000].astype(np.float32), np.random.default_rng(0)
model, optimizer = Model(jax.random.key(0)), optax.adam(3e-3)
memory = optimizer.init(eqx.filter(model, eqx.is_array))
report("before", model, images[:500])
for _ in range(500):
    model, memory = step(model, memory, images[rng.integers(500, len(images), 64)])
report("after", model, images[:500])
