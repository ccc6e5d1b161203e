"""One VQ-VAE in plain TensorFlow, trained with and without the straight-through estimator, side by side.

    python tensorflow_side_by_side.py [t10k-images-idx3-ubyte.gz] [--steps 300] [--plot side_by_side.png]

Both begin with the same weights and see the same digits, of an MNIST file or scikit-learn's. Needs matplotlib.
"""

import argparse
import gzip

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

WAYS = {
    "with the estimator": lambda z, q: z + tf.stop_gradient(q - z),  # q in value, z in the derivative
    "without": lambda z, q: tf.stop_gradient(q),  # the reconstruction loss does not reach the encoder
}


class VQVAE(tf.keras.Model):
    def __init__(self, way, codes=64, dim=8):
        super().__init__()
        self.way, conv, up = way, tf.keras.layers.Conv2D, tf.keras.layers.Conv2DTranspose
        shape = {"strides": 2, "padding": "same", "activation": "relu"}
        self.encoder = tf.keras.Sequential([conv(16, 4, **shape), conv(32, 4, **shape), conv(dim, 1)])
        self.decoder = tf.keras.Sequential([up(32, 4, **shape), up(1, 4, **shape | {"activation": None})])
        self.codebook = self.add_weight(shape=(codes, dim), initializer="random_uniform", name="codebook")

    def call(self, x):
        z = self.encoder(x)
        k = tf.argmin(tf.reduce_sum((z[..., None, :] - self.codebook) ** 2, -1), axis=-1)
        q = tf.gather(self.codebook, k)
        self.add_loss(tf.reduce_mean((tf.stop_gradient(z) - q) ** 2))  # moves the codes to the vectors
        self.add_loss(0.25 * tf.reduce_mean((z - tf.stop_gradient(q)) ** 2))  # keeps the vectors near their codes
        return self.decoder(self.way(z, q))

    @tf.function
    def step(self, x, optimizer):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((self(x) - x) ** 2)
            loss = error + sum(self.losses)
        gradients = tape.gradient(loss, self.trainable_variables)
        optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return error


def digits(path):
    if path is None:
        return load_digits().images.repeat(2, 1).repeat(2, 2) / 16  # 8 x 8, each pixel doubled
    raw = (gzip.open if path.endswith(".gz") else open)(path, "rb").read()
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28) / 255


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("images", nargs="?", help="an MNIST idx3 file, gzipped or not")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--plot", default="side_by_side.png")
args = parser.parse_args()
images = tf.constant(digits(args.images)[..., None], tf.float32)
held_out, batches = images[-300:], tf.data.Dataset.from_tensor_slices(images[:-300]).shuffle(10_000, seed=0)
figure, (curves, pictures) = plt.subplots(1, 2, figsize=(11, 2.8), width_ratios=(2, 3), layout="constrained")
rows = {"original": held_out[:10]}
for name, way in WAYS.items():
    tf.keras.utils.set_random_seed(0)
    model, optimizer = VQVAE(way), tf.keras.optimizers.Adam(3e-3)
    errors = [float(model.step(x, optimizer)) for x in batches.repeat().batch(32).take(args.steps)]
    curves.plot(errors, label=name)
    error = float(tf.reduce_mean((model(held_out) - held_out) ** 2))
    print(f"{name:<18}  held-out error {error:.5f}")
    rows[f"{name}\nerror {error:.4f}"] = model(held_out[:10])
curves.set(xlabel="step", ylabel="squared error of a batch", yscale="log")
curves.legend(loc="lower left", frameon=False)
strips = [np.concatenate(list(np.pad(row[..., 0], ((0, 0), (3, 3), (0, 0)))), axis=1) for row in rows.values()]
picture = np.concatenate(strips)
pictures.imshow(picture, "gray_r", vmin=0, vmax=1)
pictures.set(title="held-out digits", xticks=[], yticks=np.arange(0.5, 3) * len(picture) / 3, yticklabels=rows)
figure.savefig(args.plot, dpi=120)
