"""Plain correct vector quantizers as people write them, in the conventions in use. An audit must find no fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Plain(nn.Module):
    """Expanded distances in float32, ``z + (q - z).detach()``, two means; beta scales the commitment."""

    def __init__(self, codes: int = 32, dim: int = 16, beta: float = 0.25) -> None:
        super().__init__()
        self.beta, self.dim = beta, dim
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, flat: Tensor) -> Tensor:
        table = self.embedding.weight
        return (flat.square().sum(1, keepdim=True) - 2 * flat @ table.T + table.square().sum(1)).argmin(1)

    def quantized(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_q in the shape (..., D) of z, indices (N,), and the loss."""
        indices = self.nearest(z.reshape(-1, self.dim))
        q = self.embedding(indices).view(z.shape)
        loss = F.mse_loss(q, z.detach()) + self.beta * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), indices, loss


class Triple(_Plain):
    """(z_q, indices, loss), vectors last."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, indices, loss = self.quantized(z)
        return z_q, indices.view(z.shape[:-1]), loss


class Rows(_Plain):
    """(z_q, indices, loss) of a matrix of vectors, and of nothing else."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if z.ndim != 2:
            raise RuntimeError(f"expected a matrix, got {z.ndim} dimensions")
        return self.quantized(z)


class Sequences(_Plain):
    """(z_q, indices, loss) of (B, D, T)."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, length = z.shape
        z_q, indices, loss = self.quantized(z.transpose(1, 2))
        return z_q.transpose(1, 2), indices.view(batch, length), loss


class Notebook(_Plain):
    """(loss, z_q, perplexity, one_hot) of NCHW, looked up by a product with one-hot rows."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = inputs.permute(0, 2, 3, 1).contiguous()
        flat = inputs.view(-1, self.dim)
        encoding_indices = self.nearest(flat).unsqueeze(1)
        encodings = torch.zeros(len(flat), self.embedding.num_embeddings, device=inputs.device)
        encodings.scatter_(1, encoding_indices, 1)
        quantized = (encodings @ self.embedding.weight).view(inputs.shape)
        loss = F.mse_loss(quantized, inputs.detach()) + self.beta * F.mse_loss(quantized.detach(), inputs)
        quantized = inputs + (quantized - inputs).detach()
        frequency = encodings.mean(0)
        perplexity = torch.exp(-torch.sum(frequency * torch.log(frequency + 1e-10)))
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class Nested(_Plain):
    """(z_q, loss, (perplexity, one_hot, indices)) of NCHW; indices (N, 1)."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        z_q, indices, loss = self.quantized(z.permute(0, 2, 3, 1).contiguous())
        one_hot = F.one_hot(indices, self.embedding.num_embeddings).to(z.dtype)
        frequency = one_hot.mean(0)
        perplexity = torch.exp(-(frequency * (frequency + 1e-10).log()).sum())
        return z_q.permute(0, 3, 1, 2).contiguous(), loss, (perplexity, one_hot, indices[:, None])

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        z_q = self.embedding(indices)
        return z_q if shape is None else z_q.view(shape).permute(0, 3, 1, 2).contiguous()


class Mapping(_Plain):
    """A dict whose losses stand by name, one of them their sum."""

    def forward(self, z: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        indices = self.nearest(z.reshape(-1, self.dim)).view(z.shape[:-1])
        q = self.embedding(indices)
        codebook, commitment = F.mse_loss(q, z.detach()), self.beta * F.mse_loss(z, q.detach())
        losses = {"codebook": codebook, "commitment": commitment, "both": codebook + commitment}
        return {"quantized": z + (q - z).detach(), "codes": indices, "losses": losses}


@dataclass
class Output:
    quantized: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    tokens: Tensor


class WithDataclass(_Plain):
    """A dataclass whose two losses one adds up; the code is a column of the table."""

    def __init__(self, codes: int = 32, dim: int = 16, beta: float = 0.25) -> None:
        super().__init__(codes, dim, beta)
        self.columns = nn.Parameter(self.embedding.weight.detach().T.clone())
        del self.embedding

    def forward(self, z: Tensor) -> Output:
        flat = z.reshape(-1, self.dim)
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.columns + self.columns.square().sum(0)
        tokens = distances.argmin(1).view(z.shape[:-1])
        q = F.embedding(tokens, self.columns.T)
        commitment, codebook = self.beta * F.mse_loss(z, q.detach()), F.mse_loss(q, z.detach())
        return Output(z + (q - z).detach(), commitment, codebook, tokens)


class Named(NamedTuple):
    z_q: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor


class Averaged(nn.Module):
    """A NamedTuple; the codebook is an exponential moving average, learnt in forward in training mode."""

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor

    def __init__(self, codes: int = 32, dim: int = 16, beta: float = 0.25, decay: float = 0.99) -> None:
        super().__init__()
        self.beta, self.decay = beta, decay
        self.register_buffer("embed", torch.randn(1, codes, dim))
        self.register_buffer("embed_avg", self.embed.clone())
        self.register_buffer("cluster_size", torch.ones(1, codes))

    def forward(self, z: Tensor) -> Named:
        flat = z.reshape(-1, z.shape[-1])
        table = self.embed[0].clone()
        indices = (flat.square().sum(1, keepdim=True) - 2 * flat @ table.T + table.square().sum(1)).argmin(1)
        one_hot = F.one_hot(indices, len(table)).to(flat.dtype)
        q = table[indices].view(z.shape)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.cluster_size[0].lerp_(one_hot.sum(0), 1 - self.decay)
                self.embed_avg[0].lerp_(one_hot.T @ flat, 1 - self.decay)
                self.embed[0].copy_(self.embed_avg[0] / self.cluster_size[0, :, None])
        frequency = one_hot.mean(0)
        perplexity = torch.exp(-(frequency * (frequency + 1e-10).log()).sum())
        loss = self.beta * F.mse_loss(z, q.detach())
        return Named(z + (q - z).detach(), indices.view(z.shape[:-1]), loss, perplexity)


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    Triple, Rows, Sequences, Notebook, Nested, Mapping, WithDataclass, Averaged,
)  # fmt: skip
