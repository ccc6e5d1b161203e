"""A small VQ-VAE with flax.nnx on real digits: `python jax_flax.py train-images-idx3-ubyte.gz`, or scikit-learn's.

pip install 'vqkit[jax]' flax optax scikit-learn. The codebook learns by EMA, with revival.
Most patches of MNIST are background, so its perplexity stays low.
"""

import gzip
import sys

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vqkit.jax
from vqkit.reference import perplexity

EMA, REVIVAL, CODES, DIM = vqkit.EMA(0.9), vqkit.Reseed(), 64, 8


class Model(nnx.Module):
    def __init__(self, rngs):
        self.down, self.out = nnx.Conv(1, 32, (3, 3), strides=2, rngs=rngs), nnx.Conv(32, DIM, (1, 1), rngs=rngs)
        self.into, self.up = nnx.Conv(DIM, 32, (3, 3), rngs=rngs), nnx.ConvTranspose(32, 1, (4, 4), 2, rngs=rngs)

    def __call__(self, x, codebook):
        z = self.out(nnx.relu(self.down(x)))  # (B, H/2, W/2, DIM)
        found = vqkit.jax.quantize(codebook, z, sample=REVIVAL.vectors(CODES))
        return self.up(nnx.relu(self.into(found.z_q))), found


def objective(model, codebook, x):
    y, found = model(x, codebook)
    return ((y - x) ** 2).mean() + found.losses.total, found.statistics


@nnx.jit
def step(model, optimizer, codebook, x):
    gradients, statistics = nnx.grad(objective, has_aux=True)(model, codebook, x)
    optimizer.update(model, gradients)
    return vqkit.jax.update(codebook, statistics, rule=EMA, revival=REVIVAL)


if len(sys.argv) > 1:
    with gzip.open(sys.argv[1]) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)[:10_000] / 255
else:
    images = load_digits().images[..., None] / 16
model, codebook = Model(nnx.Rngs(0)), vqkit.jax.init(jax.random.key(0), codebook_size=CODES, dim=DIM)
optimizer, rng = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param), np.random.default_rng(0)
held_out, images = images[:500], images[500:]
for number in range(501):
    if number % 500 == 0:
        y, found = nnx.jit(Model.__call__)(model, held_out, codebook)
        used = perplexity(np.bincount(found.indices.ravel(), minlength=CODES))
        print(f"step {number}: MSE {((y - held_out) ** 2).mean():.4f}, perplexity {used:.1f} of {CODES}")
    codebook = step(model, optimizer, codebook, images[rng.integers(0, len(images), 64)])
