"""What ``benchmarks.search`` races, on what, and the definition that it checks indices by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqkit.functional import chunked, nearest_codes

Shape = tuple[int, int, int]  # vectors, codes, dimensions
Search = Callable[[Tensor, Tensor], Tensor]

OURS, CDIST, EXPANDED, CHUNKED = "ours", "`cdist`", "expanded", "chunked"
FAISS, SKLEARN = "faiss", "scikit-learn"
PEERS = {FAISS: ("faiss", "faiss-cpu"), SKLEARN: ("sklearn", "scikit-learn")}  # module, distribution
PRODUCT = "product"

HARD: Shape = (16384, 512, 64)
RANDOM, TWICE, NEAR, LATENTS = "random", "every code twice", "all codes within 1e-6", "a run's latents"
HARD_BAR = 2.0  # times the time of random data, at most
LARGE: Shape = (16384, 262144, 64)  # its matrix would be 16 GiB; only the memory of our search is measured
LARGE_BAR = 100.0  # MiB, at most
BARS: dict[Shape, dict[str, float]] = {  # at least
    HARD: {CDIST: 4, FAISS: 1.3, PRODUCT: 0.85},
    (16384, 1024, 256): {CDIST: 2, FAISS: 1.2, PRODUCT: 0.85},
    (65536, 8192, 32): {CDIST: 6, FAISS: 1.5, PRODUCT: 0.75},
    (65536, 1024, 8): {CDIST: 14, FAISS: 0.95, PRODUCT: 0.55},
    (65536, 4096, 4): {CDIST: 25, FAISS: 0.8},
    (64, 262144, 256): {CDIST: 1.5, FAISS: 1.0},
}
LATENT_BARS = {CDIST: 4, FAISS: 1.3, PRODUCT: 0.7}
MOST_LATENTS = 65536
FITS, PIECE = 2**32, 2**28  # bytes: of a matrix of distances, and of one piece of a larger one
CHECKED_WHOLE, SAMPLE = 2**30, 2048  # N K D up to which every row is checked, and how many rows of more


@dataclass(frozen=True)
class Case:
    """Vectors and codes of one row of the tables."""

    shape: Shape
    kind: str = RANDOM
    file: str = ""

    @property
    def bars(self) -> dict[str, float]:
        return LATENT_BARS if self.kind == LATENTS else BARS.get(self.shape, {}) if self.kind == RANDOM else {}

    @property
    def name(self) -> str:
        return ", ".join(map(str, self.shape)) + (f" ({self.kind})" if self.kind != RANDOM else "")

    def data(self) -> tuple[Tensor, Tensor]:
        if self.kind == LATENTS:
            found = load_file(self.file)
            return found["z"], found["codes"]
        n, k, d = self.shape
        generator = torch.Generator().manual_seed(0)
        z_ND, codes_KD = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
        if self.kind == TWICE:
            codes_KD[k // 2 :] = codes_KD[: k // 2]
        elif self.kind == NEAR:  # in every coordinate; a float32 near 1 has eight values in that range
            codes_KD = codes_KD[:1] + 1e-6 * torch.rand(k, d, generator=generator)
        return z_ND, codes_KD


def parse(text: str) -> Shape:
    """Of ``--shapes``: N,K,D."""
    n, k, d = map(int, text.split(","))
    return n, k, d


def all_cases(shapes: list[Shape], latents: str) -> list[Case]:
    """A random case for each shape, hard data for the shape of the hard bars (or the first), and the latents."""
    hard = HARD if HARD in shapes else shapes[0]
    cases = [Case(s, kind) for s in shapes for kind in ((RANDOM, TWICE, NEAR) if s == hard else (RANDOM,))]
    if latents:
        with safe_open(latents, "pt") as file:
            (n, d), (k, _) = file.get_slice("z").get_shape(), file.get_slice("codes").get_shape()
        cases.append(Case((n, k, d), LATENTS, latents))
    return cases


@torch.no_grad()
def save_latents(run: Path, data: Path | None, file: str) -> None:
    """What the encoder of a run makes of its images, at most the first 65,536 vectors, and the run's codebook."""
    from vqkit.data import open_images, to_tensor
    from vqkit.models import VQVAE
    from vqkit.runs.summary import images_of_run

    model = VQVAE.from_pretrained(run)
    images = open_images(data) if data else images_of_run(run)
    stride, found, rows = model.config.architecture.stride, [], 0
    for _, image in images.images.readable():
        height, width = (side - side % stride for side in image.shape[:2])
        z_BDhw = model.encoder(to_tensor(image)[..., :height, :width])
        found.append(z_BDhw.movedim(1, -1).flatten(0, -2))
        rows += len(found[-1])
        if rows >= MOST_LATENTS:
            break
    codes_KD = model.state_dict()["quantizer.quantizer.codebook"]
    save_file({"z": torch.cat(found)[:MOST_LATENTS].contiguous(), "codes": codes_KD.contiguous()}, file)


# --- the contenders -----------------------------------------------------------------------------------------------


def in_pieces(shape: Shape) -> int:
    """How many rows at a time a matrix of distances is made; 0: all."""
    n, k, _ = shape
    return max(1, PIECE // (4 * k)) if 4 * n * k > FITS else 0


def by_rows(search: Search) -> Search:
    """In pieces where the matrix of distances would not fit."""

    def run(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
        rows = in_pieces((*z_ND.shape[:1], *codes_KD.shape))
        return torch.cat([search(z_RD, codes_KD) for z_RD in z_ND.split(rows)]) if rows else search(z_ND, codes_KD)

    return run


def expanded(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """As people write it."""
    squares_N1, squares_K = z_ND.square().sum(1, keepdim=True), codes_KD.square().sum(1)
    return (squares_N1 - 2 * z_ND @ codes_KD.T + squares_K).argmin(1)


class FaissFlat:
    """Has an index for each codebook: to take codes in anew, as training would have to, is not counted."""

    def __init__(self) -> None:
        self.indices: dict[int, Any] = {}

    def __call__(self, z_ND: Tensor, codes_KD: Tensor) -> Tensor:
        import faiss

        if codes_KD.data_ptr() not in self.indices:
            self.indices[codes_KD.data_ptr()] = faiss.IndexFlatL2(codes_KD.shape[1])
            self.indices[codes_KD.data_ptr()].add(codes_KD.numpy())
        return torch.from_numpy(self.indices[codes_KD.data_ptr()].search(z_ND.numpy(), 1)[1][:, 0])


def scikit_learn(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    from sklearn.metrics import pairwise_distances_argmin

    return torch.from_numpy(pairwise_distances_argmin(z_ND.numpy(), codes_KD.numpy()))


def contenders() -> dict[str, Search]:
    """Those that are installed; ours first."""
    found: dict[str, Search] = {
        OURS: nearest_codes,
        CDIST: by_rows(lambda z, codes: torch.cdist(z, codes).argmin(1)),
        EXPANDED: by_rows(expanded),
        CHUNKED: chunked.nearest,
    }
    peers = {FAISS: FaissFlat(), SKLEARN: scikit_learn}
    return found | {name: search for name, search in peers.items() if find_spec(PEERS[name][0])}


def defined(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """``argmin_k sum_d (z_d - e_kd)^2`` in float64, the sum taken in order of d; the lowest index of equal sums."""
    z_DN, codes_DK = (np.ascontiguousarray(x.numpy().T.astype(np.float64)) for x in (z_ND, codes_KD))
    rows, found = max(1, 2**15 // len(codes_KD)), []
    for first in range(0, len(z_ND), rows):
        z_DR = z_DN[:, first : first + rows]
        sums_RK, squares_RK = np.zeros((2, z_DR.shape[1], len(codes_KD)))
        for z_R, codes_K in zip(z_DR, codes_DK, strict=True):
            np.subtract(z_R[:, None], codes_K, out=squares_RK)
            sums_RK += np.square(squares_RK, out=squares_RK)
        found.append(sums_RK.argmin(1))  # of NumPy, which promises the first
    return torch.from_numpy(np.concatenate(found))


def sample(shape: Shape) -> Tensor:
    """The rows that are checked."""
    n, k, d = shape
    rows_N = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    return rows_N if n * k * d <= CHECKED_WHOLE else rows_N[:SAMPLE]
