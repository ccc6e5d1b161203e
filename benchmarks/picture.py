"""The README's picture: a held-out photo, its reconstruction, and four times the difference.

python -m benchmarks.picture RUN docs/reconstruction.webp
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from vqkit import VQVAE
from vqkit.data import open_images
from vqkit.training import reconstruct

GAP = 8


def main(run: str, out: str) -> None:
    original = open_images().held_out[0]
    restored, _ = reconstruct(VQVAE.from_pretrained(run), original)
    difference = np.abs(original.astype(int) - restored)
    white = np.full((original.shape[0], GAP, 3), 255, np.uint8)
    panels = [original, white, restored, white, np.minimum(4 * difference, 255).astype(np.uint8)]
    Image.fromarray(np.concatenate(panels, axis=1)).save(out, quality=92, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
