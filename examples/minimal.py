"""A whole VQ-VAE in plain PyTorch, trained on real handwritten digits in seconds:  python minimal.py [--png FILE]

An autoencoder whose middle is discrete (van den Oord et al. 2017, arXiv:1711.00937): an encoder makes a 4x4 grid of
vectors out of each 8x8 image, each vector is replaced by the nearest of 64 codes, and a decoder paints the image from
the codes alone. An image is then 16 whole numbers below 64. Needs torch, scikit-learn, and pillow for the picture.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    def __init__(self, codes: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        # Where the encoder's outputs are at first, around zero: a code that nothing chooses gets no gradient, ever.
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-0.1, 0.1))
        self.beta = beta

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Every position holds one vector, across the channels, so these move last: (B, D, H, W) -> (B, H, W, D).
        # (A reshape to (-1, D) without the move would mix channels with positions, and raise no error.)
        z = z_e.movedim(1, -1)
        # Distances by subtraction. The quicker |z|^2 - 2 z.e + |e|^2 cancels, and is wrong for vectors far from 0.
        distances = torch.cdist(z.flatten(0, 2), self.codebook, compute_mode="donot_use_mm_for_euclid_dist")
        indices = distances.argmin(1).view(z.shape[:-1])
        # The gradient stops at argmin, an integer. It does pass this lookup, into the chosen rows of the codebook.
        e = self.codebook[indices]
        # Why two losses of one value? Each holds the other side still: the first moves the codes to the vectors that
        # chose them (nothing else moves them), the second keeps the encoder near its codes. beta is the second's alone.
        codebook_loss = F.mse_loss(e, z.detach())
        commitment_loss = F.mse_loss(z, e.detach())
        # Why add and subtract the input? The value is e (to rounding), while the derivative by z is 1: all the rest is
        # constant. The decoder's gradient is copied past argmin to the encoder: the straight-through estimator.
        z_q = z + (e - z).detach()
        return z_q.movedim(-1, 1), indices, codebook_loss + self.beta * commitment_loss


class VQVAE(nn.Module):
    def __init__(self, quantizer: nn.Module, dim: int, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, width, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.Conv2d(width, dim, 1),  # no activation last: codes may lie anywhere
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            *(nn.Conv2d(dim, width, 3, padding=1), nn.ReLU()),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = self.quantizer(self.encoder(images))
        return self.decoder(z_q), indices, loss


def digits() -> tuple[Tensor, Tensor]:
    """1500 images to learn from and 297 held out, (N, 1, 8, 8), in [0, 1]."""
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    return images[:1500], images[1500:]


def train(model: VQVAE, images: Tensor, epochs: int = 40, batch_size: int = 100) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in images[torch.randperm(len(images))].split(batch_size):
            reconstruction, _, loss = model(batch)
            (F.mse_loss(reconstruction, batch) + loss).backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def evaluate(model: VQVAE, images: Tensor, codes: int) -> tuple[Tensor, float, float]:
    """Reconstructions, their mean squared error, and the perplexity: how many codes are in use, in effect."""
    reconstruction, indices, _ = model(images)
    # Over all held-out images at once: the mean of batches' perplexities would depend on the batch size.
    p = torch.bincount(indices.flatten(), minlength=codes) / indices.numel()
    perplexity = torch.exp(-torch.special.xlogy(p, p).sum())
    return reconstruction, F.mse_loss(reconstruction, images).item(), perplexity.item()


def save(path: str, originals: Tensor, reconstructions: Tensor) -> None:
    """Originals above their reconstructions, enlarged eight times."""
    from PIL import Image

    rows = [torch.cat(list(F.pad(images[:, 0], (1, 1, 1, 1))), dim=1) for images in (originals, reconstructions)]
    pixels = (1 - torch.cat(rows).clamp(0, 1)).mul(255).byte().numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] * 8, pixels.shape[0] * 8), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="train a VQ-VAE on handwritten digits")
    parser.add_argument("--png", help="where to write a picture of held-out digits over their reconstructions")
    path = parser.parse_args().png

    torch.manual_seed(0)
    codes, dim = 64, 8
    learning, held_out = digits()
    model = VQVAE(VectorQuantizer(codes, dim), dim)
    train(model, learning)
    reconstruction, error, perplexity = evaluate(model, held_out, codes)
    mean_image = learning.mean(0).expand_as(held_out)
    print(f"mean squared error on {len(held_out)} held-out digits: {error:.5f}")
    print(f"mean squared error of the mean image:      {F.mse_loss(mean_image, held_out).item():.5f}")
    print(f"perplexity of the codes:                   {perplexity:.1f} of {codes}")
    if path:
        save(path, held_out[:16], reconstruction[:16])


if __name__ == "__main__":
    main()
