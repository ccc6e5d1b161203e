"""A small VQ-VAE with flax.nnx on real digits: `python jax_flax.py train-images-idx3-ubyte.gz`, or scikit-learn's.

pip install 'vqkit[jax]' flax optax scikit-learn. The codebook learns by EMA, with revival.
"""

import gzip
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vqkit
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


def objective(model, x, codebook):
    y, found = model(x, codebook)
    return ((y - x) ** 2).mean() + found.losses.total, found.statistics


@nnx.jit
def step(model, optimizer, codebook, x):
    gradients, statistics = nnx.grad(objective, has_aux=True)(model, x, codebook)
    optimizer.update(model, gradients)
    return vqkit.jax.update(codebook, statistics, rule=EMA, revival=REVIVAL)


def report(when, model, codebook, x):
    y, found = nnx.jit(lambda model, x: model(x, codebook))(model, x)
    used = perplexity(np.bincount(found.indices.ravel(), minlength=CODES))
    print(f"{when}: MSE {((y - x) ** 2).mean():.4f}, perplexity {used:.1f} of {CODES}")


if len(sys.argv) > 1:
    file = Path(sys.argv[1]).read_bytes()
    file = gzip.decompress(file) if sys.argv[1].endswith(".gz") else file
    images = np.frombuffer(file, np.uint8, offset=16).reshape(-1, 28, 28, 1) / 255
else:
    images = load_digits().images[..., None] / 16
images, rng = images[:10_000].astype(np.float32), np.random.default_rng(0)
model, codebook = Model(nnx.Rngs(0)), vqkit.jax.init(jax.random.key(0), codebook_size=CODES, dim=DIM)
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
report("before", model, codebook, images[:500])
for _ in range(500):
    codebook = step(model, optimizer, codebook, images[rng.integers(500, len(images), 64)])
report("after", model, codebook, images[:500])
