"""The race is fair, its accounts add up, and its commands run."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmarks import measuring, quantizer, search, searches, step
from benchmarks.onehot_torch import OneHotEMA
from benchmarks.plain import CODES, DIM, PlainQuantizer, PlainVQVAE
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vqkit
from vqkit.data import to_tensor
from vqkit.models import ModelConfig


def convolutions(model: nn.Module) -> Counter:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return Counter((type(layer), layer.weight.shape, layer.stride, layer.bias is None) for layer in layers)


def test_both_models_have_the_same_convolutions() -> None:
    assert convolutions(PlainVQVAE()) == convolutions(step.our_model())


def test_the_plain_quantizer_chooses_and_learns() -> None:
    """Codes far apart and vectors that lie on them; the codebook then follows the published average, smoothed."""
    layer = PlainQuantizer()
    layer.codebook = 10.0 * torch.eye(CODES, DIM) + torch.arange(CODES)[:, None]
    chosen, sums = [3, 5, 5, 80], layer.sums.clone()
    z = layer.codebook[chosen].T.reshape(1, DIM, 2, 2).clone().requires_grad_()
    z_q, commitment, perplexity = layer(z)
    torch.testing.assert_close(z_q, z)
    z_q.sum().backward()
    assert bool((z.grad == 1).all())  # straight through
    assert float(commitment.detach()) < 1e-6
    torch.testing.assert_close(perplexity, torch.tensor(4.0**0.5 * 2.0**0.5))
    counts = torch.zeros(CODES).index_put_((torch.tensor(chosen),), torch.ones(4), accumulate=True)
    smoothed = (0.01 * counts + 1e-5) / (0.04 + CODES * 1e-5) * 0.04
    vectors = torch.zeros(CODES, DIM).index_add_(0, torch.tensor(chosen), z.detach()[0].flatten(1).T)
    torch.testing.assert_close(layer.codebook, (0.99 * sums + 0.01 * vectors) / smoothed[:, None])


def test_the_profile_accounts_for_every_convolution() -> None:
    """The work by shapes is what PyTorch's own counter says, and all parts are there."""
    batch = torch.rand(2, 3, 32, 32)
    watched = step.Profile(step.ours_watched(), [batch] * 2)
    assert watched.calls.total() == 2 * 15
    assert {step.QUANTIZER, step.FORWARD, step.BACKWARD, "optimizer"} <= watched.parts.keys()
    with FlopCounterMode(display=False) as counter:
        x_hat, _, losses = step.our_model()(batch)
        (x_hat.sum() + losses.total).backward()
    counted = counter.get_flop_counts()["Global"]
    own = {part: sum(watched.calls[layer] * step.flops(*layer) for layer in watched.calls if layer[0] == part)
           for part in step.BOTH}  # fmt: skip
    assert own[step.FORWARD] == counted[torch.ops.aten.convolution]
    assert own[step.BACKWARD] == counted[torch.ops.aten.convolution_backward]


def test_the_tables() -> None:
    speed, parts, layers = step.tables(batch=2, rounds=2)
    assert re.search(r"^\| ours \| [0-9.]+ \| 1\.00 \(1\.00 to 1\.00\) \|$", speed, re.MULTILINE)
    assert [row.split(" |")[0] for row in speed.splitlines()[2:4]] == ["| plain", "| plain, channels last"]
    shares = [float(cell) for row in parts.splitlines()[3:-1] for cell in re.findall(r"([0-9.]+)% \|$", row)]
    assert abs(sum(shares) - 100) < 1
    assert layers.count("\n| ") == 2 + 9  # the head, nine kinds of convolution, all


# --- the search and the EMA quantizer -----------------------------------------------------------------------------

# Peers warn as they are imported, each in its own way.
peers_may_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def cells(table: str, name: str) -> list[str]:
    """Of the row that begins with ``name``."""
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", table, re.MULTILINE)
    return found.split(" | ")


def test_the_definition_is_the_definition() -> None:
    """A sum at a time in Python, on data with near-ties, and with every code twice."""
    for kind in (searches.RANDOM, searches.TWICE, searches.NEAR):
        z, codes = searches.Case((40, 12, 5), kind).data()
        sums = [[sum((a - b) ** 2 for a, b in zip(x, e, strict=True)) for e in codes.tolist()] for x in z.tolist()]
        assert searches.defined(z, codes).tolist() == [row.index(min(row)) for row in sums]


@peers_may_warn
def test_the_race_of_searches() -> None:
    """Ours always runs and errs nowhere; who is not installed is named; the check finds errors where there are some."""
    shape = (300, 48, 8)
    cases = searches.all_cases([shape], "")
    text = search.tables(cases, rounds=2)
    absent = [dist for module, dist in searches.PEERS.values() if find_spec(module) is None]
    assert (re.findall(r"Left out, as not installed: (.*)\.", text) or [""]) == [", ".join(absent)]
    names = list(searches.contenders())
    assert names[0] == searches.OURS
    assert len(names) == 4 + len(searches.PEERS) - len(absent)
    speed, hard, medians, wrong = text.split("\n\n")[1:]
    assert [len(cells(part, cases[0].name)) for part in (speed, medians, wrong)] == [len(names) + k for k in (2, 1, 1)]
    assert [cells(wrong, case.name)[:2] for case in cases] == [["300", "0"]] * 3
    assert int(cells(wrong, cases[2].name)[2]) > 30  # `cdist` cannot part codes within 1e-6
    assert len(hard.splitlines()) == 2 + 2


def test_large_matrices_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codes = searches.Case((50, 16, 4)).data()
    whole, seen = searches.expanded(z, codes), []
    assert searches.in_pieces(searches.LARGE) == 256
    monkeypatch.setattr(searches, "FITS", 4 * 16 * 49)
    monkeypatch.setattr(searches, "PIECE", 4 * 16 * 20)
    pieces = searches.by_rows(lambda z, codes: (seen.append(len(z)), searches.expanded(z, codes))[1])(z, codes)
    assert seen == [20, 20, 10]
    assert torch.equal(pieces, whole)


def test_the_latents_are_those_that_the_run_quantizes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    model = ModelConfig(start=vqkit.Uniform()).build(seed=0).eval()
    model.save_pretrained(tmp_path / "run")
    searches.save_latents(tmp_path / "run", tmp_path, file := str(tmp_path / "latents.safetensors"))
    z, codes = searches.all_cases([(64, 16, 4)], file)[-1].data()
    shown = vqkit.data.open_images(tmp_path).images
    indices = torch.cat([model.encode(to_tensor(image)).flatten() for _, image in shown.readable()])
    assert len(indices) == len(shown) * 16
    assert torch.equal(searches.defined(z, codes), indices)


def test_a_figure_stands_beside_its_bar() -> None:
    assert measuring.beside(4.2, 4, ".1f") == "4.2 (4)"
    assert measuring.beside(3.9, 4, ".1f") == "**3.9** (4)"
    assert measuring.beside(2.1, 2, ".1f", least=False) == "**2.1** (2)"
    assert measuring.beside(2.1, None, ".1f") == "2.1"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
def test_extra_memory_is_the_peak() -> None:
    assert 60 < measuring.extra_memory(lambda: float(torch.ones(2**24).sum())) < 80  # 64 MiB, and freed again


@peers_may_warn
def test_the_race_of_quantizers() -> None:
    names = quantizer.contenders()
    assert names == [
        n for n in ("ours", "vector-quantize-pytorch", "one-hot") if n != quantizer.THEIRS or find_spec(quantizer.PEER)
    ]
    table = quantizer.table((64, 16, 8), rounds=2, extra=dict.fromkeys(names, 2.0))
    assert [cells(table, name)[-1] for name in names] == ["0"] * len(names)
    assert cells(table, "ours")[1:4] == ["1.00", "2.0", "1.0"]


def test_the_one_hot_layer_learns_as_published() -> None:
    """The average of the vectors, smoothed, from codes far apart; and the gradient straight through, with its loss."""
    codes = 10.0 * torch.eye(4, 6)
    layer = OneHotEMA(codes, decay=0.9, commitment=0.25)
    chosen = torch.tensor([[0, 2], [2, 3]])
    z = (codes[chosen] + torch.rand(2, 2, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    z_q, indices, loss = layer(z)
    assert torch.equal(indices, chosen)
    torch.testing.assert_close(z_q, codes[chosen])
    (z_q.sum() + loss).backward()
    torch.testing.assert_close(z.grad, 1 + 0.5 * (z.detach() - codes[chosen]) / z.numel())
    counts = torch.tensor([1.0, 0.0, 2.0, 1.0])
    sizes = 0.9 + 0.1 * counts
    smoothed = (sizes + 1e-5) / (sizes.sum() + 4e-5) * sizes.sum()
    sums = torch.zeros(4, 6).index_add_(0, chosen.flatten(), z.detach().flatten(0, 1))
    torch.testing.assert_close(layer.codes, (0.9 * codes + 0.1 * sums) / smoothed[:, None])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("module", [search, quantizer], ids=["search", "quantizer"])
def test_memory_alone(module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command runs in a process for each contender: a number for each of its cases."""
    monkeypatch.setattr("sys.argv", ["benchmarks", "--memory-of", "ours", "--shapes", "64,16,4", "32,16,4"])
    module.main()
    found = json.loads(capsys.readouterr().out)
    assert len(found) == (4 if module is search else 2)
