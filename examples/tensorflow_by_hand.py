"""What ``apply_gradients`` does to a codebook, done by hand with scatter operations, and EMA as a scatter update.

    python tensorflow_by_hand.py [--steps 50]

Each line prints the largest difference between the table that the optimizer (or vqkit's layer) moved and the one moved
by hand, and how far the optimizer moved a code that was never looked up, and one that was looked up in step 0 alone.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import vqkit.keras
from vqkit import EMA, Given

CODES, DIM, RATE = 16, 4, 0.01
START = np.random.default_rng(0).standard_normal((CODES, DIM)).astype("float32")
ONCE, NEVER = CODES - 2, CODES - 1


class SGD:
    """e -= rate g, for the rows that were looked up; of a row that was looked up twice, twice."""

    def apply(self, g, e):
        e.scatter_nd_sub(g.indices[:, None], RATE * g.values)


class Momentum:
    """m = 0.9 m - rate g, e += m: m of a row that is no longer looked up shrinks, and moves the row meanwhile."""

    def __init__(self):
        self.m = tf.Variable(tf.zeros((CODES, DIM)))

    def apply(self, g, e):
        self.m.assign(0.9 * self.m)
        self.m.scatter_nd_sub(g.indices[:, None], RATE * g.values)
        e.assign_add(self.m)


class Adam:
    """m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, e -= rate m' / (sqrt(v') + eps); m', v' are corrected for the start.

    ``of_slices`` says what g^2 is of a row with several look-ups. Adam is defined with the square of their sum. Keras's
    squares each slice of ``tf.IndexedSlices`` and adds the squares up: too small, so such a row moves too far.
    """

    def __init__(self, of_slices=True, decay=0.0):
        self.m, self.v = (tf.Variable(tf.zeros((CODES, DIM))) for _ in range(2))
        self.of_slices, self.decay, self.t = of_slices, decay, 0

    def apply(self, g, e, b1=0.9, b2=0.999, eps=1e-7):
        self.t += 1
        if not self.of_slices:  # converting adds up the slices of a row
            g = tf.IndexedSlices(tf.convert_to_tensor(g), tf.range(CODES))
        self.m.assign(b1 * self.m)
        self.v.assign(b2 * self.v)
        self.m.scatter_nd_add(g.indices[:, None], (1 - b1) * g.values)
        self.v.scatter_nd_add(g.indices[:, None], (1 - b2) * g.values**2)
        e.assign_sub(RATE * self.decay * e)
        correction = np.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        e.assign_sub(RATE * correction * self.m / (tf.sqrt(self.v) + eps))


def compare(name, optimizer, by_hand, steps, dense=False):
    theirs, ours = tf.Variable(START), tf.Variable(START)
    for step in range(steps):
        k = np.random.default_rng(step).integers(0, ONCE, 40)
        if step == 0:
            k[0] = ONCE
        for e, apply in ((theirs, lambda g, e: optimizer.apply_gradients([(g, e)])), (ours, by_hand.apply)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((tf.gather(e, k) - 1.0) ** 2)
            g = tape.gradient(loss, e)  # IndexedSlices: 40 indices as looked up, repeats repeated
            apply(tf.convert_to_tensor(g) if dense and e is theirs else g, e)
        if step == 0:
            after_one = theirs.numpy()
    difference, (once, never) = np.abs(theirs - ours).max(), np.abs(theirs.numpy() - after_one)[[ONCE, NEVER]].max(1)
    print(f"{name:<34} {difference:.1e}   {never:.4f}   {once:.4f}")


def compare_ema(steps, decay=0.9):
    """n' = d n + (1-d) c, e' = e + (1-d)/n' sum (z - e), at the rows that were chosen."""
    layer = vqkit.keras.VectorQuantizer(CODES, DIM, update=EMA(decay), start=Given(START))
    e, n = tf.Variable(START), tf.Variable(tf.ones(CODES))
    for step in range(steps):
        z = tf.constant(np.random.default_rng(step).standard_normal((40, DIM)), tf.float32)
        k = layer.encode(z)
        layer(z, training=True)
        chosen, place = tf.unique(k)
        counts = tf.math.unsorted_segment_sum(tf.ones(40), place, len(chosen))
        sums = tf.math.unsorted_segment_sum(z - tf.gather(e, k), place, len(chosen))
        n_chosen = decay * tf.gather(n, chosen) + (1 - decay) * counts
        n.assign(decay * n)
        n.scatter_nd_update(chosen[:, None], n_chosen)
        e.scatter_nd_add(chosen[:, None], (1 - decay) / n_chosen[:, None] * sums)
    print(f"{'EMA, against vqkit.keras':<34} {np.abs(layer.codebook.numpy() - e).max():.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    optimizers = keras.optimizers
    print(f"{'':<34} {'by hand':<9} {'never':<8} once")
    compare("SGD", optimizers.SGD(RATE), SGD(), steps)
    compare("SGD with momentum", optimizers.SGD(RATE, momentum=0.9), Momentum(), steps)
    compare("Adam, IndexedSlices", optimizers.Adam(RATE), Adam(), steps)
    compare("Adam, the same as a dense tensor", optimizers.Adam(RATE), Adam(of_slices=False), steps, dense=True)
    compare("AdamW, IndexedSlices", optimizers.AdamW(RATE, weight_decay=0.1), Adam(decay=0.1), steps)
    compare("Adam, squared after adding up", optimizers.Adam(RATE), Adam(of_slices=False), steps)
    compare_ema(steps)


if __name__ == "__main__":
    main()
