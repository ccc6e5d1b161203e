"""`vqkit explain`, part 4: the norms, the kinds of zero, the pulls and the variants are what plain PyTorch gives."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.test_pages import Chart, Tree
from vqkit.gradients.explain import variants
from vqkit.gradients.explain.learning import LOSSES, _said, learning
from vqkit.gradients.explain.page import prose
from vqkit.gradients.explain.published import CROP, held_out, trained
from vqkit.gradients.explain.variants import MEASURES, VARIANTS, train_all, verdict
from vqkit.pages import Linear, Series, line_chart


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def part(told):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    made = learning(told.append, steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    return made


# -- who learns from what


def plain_gradients(loss):
    """By ``torch.autograd.grad`` alone, each tensor asked for on its own, None where PyTorch has no path."""
    model = trained()
    s = model(held_out(CROP, 64))
    groups = {
        "encoder": list(model.encoder.parameters()),
        "codebook": [model.codebook],
        "decoder": list(model.decoder.parameters()),
        "distances": [s.distances],
    }
    return {
        name: [torch.autograd.grad(getattr(s, loss), t, retain_graph=True, allow_unused=True)[0] for t in tensors]
        for name, tensors in groups.items()
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_norms_and_missing_paths_are_what_autograd_gives(part, loss):
    for learner, found in plain_gradients(loss).items():
        told = part.facts["norms"][loss][learner]
        if all(g is None for g in found):
            assert told == {"norm": 0.0, "kind": "no path"}
        else:
            norm = np.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None))
            assert told["kind"] == "flows"
            assert told["norm"] == pytest.approx(norm, rel=1e-5)


def test_each_loss_trains_what_the_text_says(part):
    flows = {loss: {n for n, r in found.items() if r["kind"] == "flows"} for loss, found in part.facts["norms"].items()}
    assert flows == {"reconstruction": {"encoder", "decoder"}, "codebook": {"codebook"}, "commitment": {"encoder"}}
    assert {r["kind"] for r in part.facts["softmax"].values()} == {"flows"}


def test_in_one_function_the_zeros_are_of_the_other_kind(part):
    kinds = {loss: {n: r["kind"] for n, r in found.items()} for loss, found in part.facts["layer"].items()}
    assert kinds == {
        "reconstruction": {"z": "flows", "codebook": "zero"},
        "codebook": {"z": "zero", "codebook": "flows"},
        "commitment": {"z": "flows", "codebook": "zero"},
    }
    codebook = part.facts["layer"]["codebook"]["codebook"]["norm"]
    assert codebook == pytest.approx(part.facts["norms"]["codebook"]["codebook"]["norm"], rel=1e-5)


# -- what each loss asks of z


def test_pulls_are_cosines_with_the_way_to_the_code(part):
    model = trained()
    s = model(held_out(CROP, 64))
    way = (s.e_k - s.z_flat).detach().double().numpy()
    for loss in ("reconstruction", "commitment"):
        (g,) = torch.autograd.grad(getattr(s, loss), s.z_flat, retain_graph=True)
        step = -g.double().numpy()
        cosine = (step * way).sum(1) / np.linalg.norm(step, axis=1) / np.linalg.norm(way, axis=1)
        told = part.facts["pull"][loss]
        assert told["mean"] == pytest.approx(cosine.mean(), abs=1e-5)
        assert told["towards"] == pytest.approx((cosine > 0).mean(), abs=1e-6)
    assert part.facts["pull"]["commitment"]["least"] == pytest.approx(1, abs=1e-5)
    assert part.facts["pull"]["codebook"] is None  # it has no path to z


def test_through_a_softmax_the_distances_get_what_plain_code_gives_them(part):
    model = trained()
    x = held_out(CROP, 64)
    z = model.encoder(x).permute(0, 2, 3, 1)
    distances = torch.cdist(z.reshape(-1, 8), model.codebook).square()
    mixed = (torch.softmax(-distances, 1) @ model.codebook).view_as(z)
    (g,) = torch.autograd.grad(F.mse_loss(model.decoder(mixed.permute(0, 3, 1, 2)), x), distances)
    assert part.facts["softmax"]["distances"]["norm"] == pytest.approx(float(g.norm()), rel=1e-2)


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ([-0.3, -0.2, -0.11], "away from its code"),
        ([0.11, 0.2, 0.3], "towards its code"),
        ([-0.3, -0.2, -0.09], "neither to its code nor away from it"),
        ([0.09, 0.2, 0.3], "neither to its code nor away from it"),
    ],
)
def test_which_way_the_reconstruction_asks_is_said_by_all_seeds(cosines, said):
    assert _said(cosines) == said


def test_the_estimator_does_not_pull_z_to_its_code():
    """In a trained model fewer than half of the vectors are asked to go nearer to their code."""
    model = trained()
    s = model(held_out(CROP, 64))
    (g,) = torch.autograd.grad(s.reconstruction, s.z_flat)
    towards = (-g * (s.e_k - s.z_flat)).sum(1) > 0
    assert float(towards.double().mean()) < 0.5


# -- variants

PLAIN = {  # written out once more, to be compared with what is trained
    "standard": lambda z, e: (z + (e - z).detach(), F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())),
    "stopped": lambda z, e: (e.detach(), F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())),
    "unstopped": lambda z, e: (e, F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())),
    "commitment_only": lambda z, e: (e.detach(), 0.25 * F.mse_loss(z, e.detach())),
    "no_commitment": lambda z, e: (z + (e - z).detach(), F.mse_loss(e, z.detach())),
    "no_codebook_loss": lambda z, e: (z + (e - z).detach(), 0.25 * F.mse_loss(z, e.detach())),
    "ema": lambda z, e: (z + (e - z).detach(), 0.25 * F.mse_loss(z, e.detach())),
    "swapped": lambda z, e: (z + (e - z).detach(), 0.25 * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach())),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_variant_is_what_its_code_says(variant):
    """Three steps by hand of plain code give the same error, and the same movement of the codes."""
    ([run],) = train_all([variant], lambda _: None, steps=3, seeds=[1]).values()
    model, start = variants._started(variant, 1), variants._started(variant, 1).codebook.detach()
    crops = variants.RandomCrops(variants.photos().images, CROP, variants.BATCH, 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    counts, sums = torch.ones(len(start)), start.clone()
    for step in range(3):
        x = crops.batch_at(step)
        z = model.encoder(x).permute(0, 2, 3, 1)
        k = torch.cdist(
            z.reshape(1, -1, 8).detach(), model.codebook[None].detach(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        e = model.codebook[k[0].argmin(1)].view_as(z)
        z_q, latent = PLAIN[variant.name](z, e)
        optimizer.zero_grad()
        (F.mse_loss(model.decoder(z_q.permute(0, 3, 1, 2)), x) + latent).backward()
        optimizer.step()
        if variant.name == "ema":  # the published form: averages of counts and of sums, and their ratio
            hot = F.one_hot(k[0].argmin(1), len(start)).float()
            counts = 0.99 * counts + 0.01 * hot.sum(0)
            sums = 0.99 * sums + 0.01 * hot.T @ z.detach().reshape(-1, 8)
            model.codebook.data = torch.where(hot.sum(0)[:, None] > 0, sums / counts[:, None], model.codebook.data)
    error = float(model(held_out(CROP, 32)).reconstruction.detach())
    assert run["step"] == [0, 1, 2, 3]
    assert run["error"][-1] == pytest.approx(error, rel=1e-3)
    assert run["moved"][-1] == pytest.approx(float((model.codebook.detach() - start).abs().max()), rel=1e-3, abs=1e-9)


def test_the_code_that_is_shown_is_that_of_the_paper_for_the_standard():
    texts = {v.name: v.code for v in VARIANTS}
    tail = "loss = mean (x - x_hat)² + mean (sg(z) - e)² + 0.25 mean (z - sg(e))²"
    assert texts["standard"] == f"z_q = z + sg(e - z); {tail}"
    assert texts["stopped"] == f"z_q = sg(e); {tail}"
    assert texts["commitment_only"] == "z_q = sg(e); loss = mean (x - x_hat)² + 0.25 mean (z - sg(e))²"
    assert texts["ema"].endswith("; e by EMA(decay=0.99)")
    assert texts["swapped"].endswith("+ 0.25 mean (sg(z) - e)² + mean (z - sg(e))²")
    assert len(set(texts.values())) == len(VARIANTS) == len(PLAIN)


def test_one_core_gives_the_same_bits_as_several(monkeypatch):
    several = train_all(VARIANTS[:2], lambda _: None, steps=2, seeds=[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert train_all(VARIANTS[:2], lambda _: None, steps=2, seeds=[0]) == several


def runs(*errors, distance=0.1, perplexity=10.0):
    return [
        {"error": [9.0, e], "distance": [9.0, distance], "perplexity": [9.0, perplexity], "spread": [9.0, 1.0]}
        for e in errors
    ]


@pytest.mark.parametrize(
    ("measured", "kind", "breaks", "words"),
    [
        (runs(2.5, 1.8, 2.2), "alike", False, "It does not break: its final errors overlap"),
        (runs(6.0, 3.1, 9.0), "worse", True, "It breaks: every seed ends above"),
        (runs(3.1, 3.2, 3.3), "worse", False, "It does not break: every seed ends above"),
        (runs(0.5, 0.6, 0.7), "better", False, "It does not break: every seed ends below"),
        (runs(2.0, 2.1, 2.2, distance=1.1), "alike", True, "z runs away: it ends at least 11 times as far"),
        (runs(2.0, 2.1, 2.2, distance=0.9), "alike", False, "in the middle 1.05 times as large."),
        (runs(2.0, 2.1, 2.2, perplexity=4.0), "alike", False, "It uses fewer codes: perplexity 4.0 at most."),
    ],
)
def test_a_verdict_follows_from_what_was_measured(measured, kind, breaks, words):
    found = verdict(measured, runs(1.0, 3.0, 2.0))
    assert (found["kind"], found["breaks"]) == (kind, breaks)
    assert words in found["verdict"]


def test_without_commitment_z_runs_away_and_without_codebook_loss_no_code_moves():
    chosen = [v for v in VARIANTS if v.name in ("standard", "no_commitment", "no_codebook_loss")]
    last = {n: {m: v[-1] for m, v in run.items()} for n, [run] in train_all(chosen, lambda _: None, 60, [0]).items()}
    assert last["no_commitment"]["distance"] > 10 * last["standard"]["distance"]
    assert last["no_codebook_loss"]["moved"] == 0 < last["standard"]["moved"]


# -- the page


def test_the_part_is_plain_data_and_its_text_has_every_number(part, told):
    json.dumps(part.facts, allow_nan=False)
    assert len([text for text in told if "trained" in text]) == 24
    text = prose(part)
    Tree(text)
    assert "{{" not in text
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    names = ["table", "distances", "zero", "pull", "commitment", "variants", *(v.name for v in VARIANTS)]
    assert {f"learning-{name}" for name in names} <= set(ids)
    assert all(
        v["verdict"].replace("'", "&#x27;") in text for name, v in part.facts["variants"].items() if name != "standard"
    )
    assert {len(row) for table in part.tables.values() for row in (table.columns, *table.rows)} <= {3, 5, 6}


def test_charts_have_bands_from_the_least_to_the_greatest_seed(part):
    charts = re.findall(r"<figure.*?</figure>", part.figures["terms"])
    assert len(charts) == len(MEASURES)
    drawn = Chart(charts[1])  # perplexity, on a linear scale
    (band,) = drawn.points("band c1")
    seeds = np.array([run["perplexity"] for run in part.facts["variants"]["no_commitment"]["runs"]])
    edges = np.array([value for _, value in band])
    count = seeds.shape[1]
    np.testing.assert_allclose(edges[:count], seeds.min(0), atol=0.1)
    np.testing.assert_allclose(edges[count:][::-1], seeds.max(0), atol=0.1)


def test_a_band_passes_over_gaps_and_widens_the_scale():
    nan = float("nan")
    figure = line_chart(
        [Series("a", [0, 1, 2], [1, 2, 3], low=[0, nan, 2], high=[2, 3, 10])], Linear(), title="t", x_label="step"
    )
    (band,) = Chart(figure).points("band c0")
    np.testing.assert_allclose(band, [(0, 0), (2, 2), (2, 10), (0, 2)], atol=0.05)
    assert "band" not in line_chart([Series("a", [0, 1], [1, 2])], Linear(), title="t", x_label="step")
