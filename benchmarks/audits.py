"""The codebook quantizers of four libraries and ours against the laws: the tables of docs/audit.md.

    pip install --no-deps vector-quantize-pytorch einops einx torch-einops-utils frozendict loguru diffusers \
encodec descript-audio-codec
    python -m benchmarks.audits > tables.md

Of encodec and descript-audio-codec only the files of the quantizers are imported: their packages also ask for
torchaudio and more, which have no part in this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata, util
from types import ModuleType
from typing import Any

from torch import nn

import vqkit
from vqkit.gradients.audit.report import LAWS, Audit

DIM, CODES = 16, 64


def _alone(*packages: str) -> None:
    """Packages whose own __init__ is not run when a module of theirs is imported."""
    for name in packages:
        spec = util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise SystemExit(f"{name} is not installed: see the first lines of benchmarks/audits.py.")
        package = ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package


def _layers() -> dict[str, Callable[[], nn.Module]]:
    def of(module: str, name: str, **arguments: Any) -> Callable[[], nn.Module]:
        return partial(getattr(import_module(module), name), **arguments)

    ours = partial(vqkit.VectorQuantizer, DIM, CODES)
    lucid = partial(of, "vector_quantize_pytorch", dim=DIM, codebook_size=CODES)
    taming = partial(of, "diffusers.models.autoencoders.vae", "VectorQuantizer", n_e=CODES, vq_embed_dim=DIM, beta=0.25)
    _alone("encodec", "dac", "dac.nn")
    return {
        "vqkit: `VectorQuantizer()`": ours,
        "vqkit: `update=EMA()`": partial(ours, update=vqkit.EMA()),
        "vqkit: `update=EMA(), start=KMeans(), revival=Reseed()`": partial(
            ours, update=vqkit.EMA(), start=vqkit.KMeans(), revival=vqkit.Reseed()
        ),
        "vqkit: `estimator=RotationTrick()`": partial(ours, estimator=vqkit.RotationTrick()),
        "vector-quantize-pytorch: `VectorQuantize()`": lucid("VectorQuantize"),
        "vector-quantize-pytorch: `VectorQuantize(rotation_trick=False)`": lucid(
            "VectorQuantize", rotation_trick=False
        ),
        "vector-quantize-pytorch: `VectorQuantize(kmeans_init=True, threshold_ema_dead_code=2)`": lucid(
            "VectorQuantize", kmeans_init=True, threshold_ema_dead_code=2
        ),
        "vector-quantize-pytorch: `VectorQuantize(learnable_codebook=True, ema_update=False)`": lucid(
            "VectorQuantize", learnable_codebook=True, ema_update=False
        ),
        "vector-quantize-pytorch: `SimVQ()`": lucid("SimVQ"),
        "vector-quantize-pytorch: `ResidualVQ(num_quantizers=2)`": lucid("ResidualVQ", num_quantizers=2),
        "diffusers: `VectorQuantizer()`": taming(),
        "diffusers: `VectorQuantizer(legacy=False)`": taming(legacy=False),
        "encodec: `VectorQuantization()`": of(
            "encodec.quantization.core_vq", "VectorQuantization", dim=DIM, codebook_size=CODES
        ),
        "encodec: `VectorQuantization(kmeans_init=False)`": of(
            "encodec.quantization.core_vq", "VectorQuantization", dim=DIM, codebook_size=CODES, kmeans_init=False
        ),
        "descript-audio-codec: `VectorQuantize(codebook_dim=8)`": of(
            "dac.nn.quantize", "VectorQuantize", input_dim=DIM, codebook_size=CODES, codebook_dim=8
        ),
        "descript-audio-codec: `ResidualVectorQuantize(n_codebooks=2)`": of(
            "dac.nn.quantize",
            "ResidualVectorQuantize",
            input_dim=DIM,
            n_codebooks=2,
            codebook_size=CODES,
            codebook_dim=8,
        ),
    }


def _sign(found: Audit, number: int) -> str:
    severities = {f.severity for f in found.findings if f.law.number == number}
    if severities:
        return "**fault**" if "fault" in severities else "hazard"
    return "holds" if any(k.law.number == number for k in found.kept) else "-"


def main() -> None:
    """Prints the versions, a table of implementations by laws, and every finding."""
    audits: dict[str, Audit | str] = {}
    for name, make in _layers().items():
        print(name, file=sys.stderr)
        try:
            audits[name] = vqkit.audit(make, DIM)
        except ValueError as error:
            audits[name] = str(error)
    packages = ("vector-quantize-pytorch", "diffusers", "encodec", "descript-audio-codec", "torch")
    print(", ".join([f"vqkit {vqkit.__version__}", *(f"{name} {metadata.version(name)}" for name in packages)]) + "\n")
    done = [found for found in audits.values() if isinstance(found, Audit)]
    laws = [n for n in LAWS if any(_sign(found, n) != "-" for found in done)]
    print("| | " + " | ".join(map(str, laws)) + " |")
    print("|---|" + ":-:|" * len(laws))
    for name, found in audits.items():
        cells = [_sign(found, n) for n in laws] if isinstance(found, Audit) else ["refused"] * len(laws)
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name, found in audits.items():
        print(f"\n### {name}\n")
        lines = [f"{f.severity}, {f.law}: {f.measured} (expected: {f.expected})" for f in getattr(found, "broken", ())]
        print("\n".join(f"- {line}" for line in lines) or (found if isinstance(found, str) else "No finding."))


if __name__ == "__main__":
    main()
