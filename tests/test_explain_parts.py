"""Parts 1 to 3 of the explanation: numbers against those known beforehand, or against definitions in NumPy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from vqkit.gradients.explain import published
from vqkit.gradients.explain.chain import LAYOUTS, chain, reshaped
from vqkit.gradients.explain.parts import Part
from vqkit.gradients.explain.published import BETA, DIM, Steps, held_out
from vqkit.gradients.explain.rounding import DETACHED, rounding
from vqkit.gradients.explain.spellings import SLIP, SPELLINGS, slip, spellings


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Part]]:
    """The three parts, of models trained for 60 steps, which is enough for every statement that is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "STEPS", 60)
        published.trained.cache_clear()
        random = torch.random.get_rng_state()
        yield {part.__name__: part(lambda _: None) for part in (rounding, spellings, chain)}
        assert torch.equal(torch.random.get_rng_state(), random)
        published.trained.cache_clear()


@pytest.fixture(scope="module")
def steps(parts: dict[str, Part]) -> Steps:
    return published.trained()(held_out(32, 64))


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to eight digits of a mantissa, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


# --- rounding -----------------------------------------------------------------------------------------------------


def walk(node: Any) -> list[str]:
    """The names on the only path down from a node."""
    below = [target for target, _ in node.next_functions if target is not None]
    assert len(below) <= 1
    return [node.name(), *(walk(below[0]) if below else [])]


def test_rounding_gives_the_numbers_that_everyone_gets(parts: dict[str, Part]) -> None:
    found = {way["code"]: (way["value"], way["gradient"]) for way in parts["rounding"].facts["ways"]}
    assert found == {
        "z": (6.0, [0.0, 0.0]),
        DETACHED: (6.0, [2.0, 2.0]),
        "y": (pytest.approx(6.4), [2.0, 2.0]),
        "y + (z - y)": (6.0, [0.0, 0.0]),
        "y + z.detach()": (pytest.approx(12.4), [2.0, 2.0]),
        "z.detach()": (6.0, None),
    }
    assert parts["rounding"].facts["through"]["same"] == 2


def test_the_drawn_graph_is_autograds(parts: dict[str, Part]) -> None:
    x = torch.tensor([1.1, 2.1], requires_grad=True)
    y = 2 * x
    for name, used in (("rounded", torch.round(y)), ("through", y + (torch.round(y) - y).detach())):
        names = [node.replace("Backward0", "") for node in walk(used.sum().grad_fn)[:-1]] + ["x"]
        facts = parts["rounding"].facts[name]
        assert facts["path"] == ", ".join(names)
        passed = [(step["source"], step["target"]) for step in facts["steps"] if step["losses"]]
        assert passed == list(pairwise(names))
    steps = {(s["source"], s["target"]): s for s in parts["rounding"].facts["through"]["steps"]}
    labels = {pair: step["label"] for pair, step in steps.items() if step["label"]}
    assert labels == {("Sum", "Add"): "[1, 1]", ("Add", "Mul"): "[1, 1]", ("Mul", "x"): "[2, 2]"}
    assert [pair for pair, step in steps.items() if step["cut"]] == [("Add", "Sub")]
    assert {("Sub", "Round"), ("Round", "Mul"), ("Sub", "Mul")} <= set(steps)
    assert [step["label"] for step in parts["rounding"].facts["rounded"]["steps"]] == ["[1, 1]", "[0, 0]", "[0, 0]"]
    figure = parts["rounding"].figures["through"]
    assert figure.count('<g class="red">') == figure.count('class="cut"') == figure.count('class="bar"') == 1


# --- spellings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_hands_a_gradient_on_unchanged(name: str) -> None:
    z, q, gradient = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0)).unbind()
    value = SPELLINGS[name](z.requires_grad_(), q)
    assert torch.equal(torch.autograd.grad(value, z, gradient)[0], gradient)
    torch.testing.assert_close(value, 2 * z - q if name == SLIP else q)


def test_how_many_values_are_no_code(parts: dict[str, Part], steps: Steps) -> None:
    facts = parts["spellings"].facts
    z, q = steps.z_flat.detach().numpy(), steps.e_k.detach().numpy()
    for dtype, cast in (("float32", np.asarray), ("bfloat16", bfloat16)):
        z_c, q_c = cast(z), cast(q)
        away = np.abs(cast(z_c + cast(q_c - z_c)) - q_c)
        close = (z_c * q_c > 0) & (np.abs(z_c) <= 2 * np.abs(q_c)) & (np.abs(q_c) <= 2 * np.abs(z_c))
        expected = {"share": (away > 0).mean(), "largest": away.max(), "close": close.mean(), "share_of_close": 0}
        assert facts["first"][dtype] == pytest.approx(expected)
        assert 0.001 < facts["first"][dtype]["share"] < 0.9
    for name in ("q + (z - z.detach())", "autograd.Function", "custom_op, register_autograd"):
        assert all(facts["spellings"][name][dtype]["share"] == 0 for dtype in ("float32", "bfloat16"))
    assert all(way["copied"] and way["at_z"] == way["at_z_q"] > 0 for way in facts["spellings"].values())


def test_the_slip_is_twice_as_far_from_the_code_on_the_other_side(parts: dict[str, Part], steps: Steps) -> None:
    facts = parts["spellings"].facts["slip"]
    z, q = steps.z_flat.detach().double().numpy(), steps.e_k.detach().double().numpy()
    assert facts["distance_of_z"] == pytest.approx(np.sqrt(np.mean((z - q) ** 2)), rel=1e-5)
    assert facts["distance"] == pytest.approx(2 * facts["distance_of_z"], rel=1e-5)
    assert facts["codes"] == 0
    assert facts["error_of_codes"] == pytest.approx(steps.reconstruction.item(), rel=1e-6)
    assert facts["error_of_codes"] != facts["error_of_slip"] != facts["error_of_z"]
    assert facts["trained"]["shown"] != facts["trained"]["decoded"]
    moved = (2 * steps.z_flat - steps.e_k).detach().requires_grad_()
    model = published.trained()
    error = (model.decoder(model.code.unflatten(moved, steps.z.shape)) - steps.x).square().mean()
    given, copied = (
        torch.autograd.grad(loss, at, retain_graph=True)[0]
        for loss, at in ((error, moved), (steps.reconstruction, steps.z_q_flat))
    )
    cosine = float(torch.cosine_similarity(given.flatten(), copied.flatten(), dim=0))
    assert facts["decoder"]["cosine"] == pytest.approx(cosine, abs=1e-4)


def test_the_derivative_is_taken_at_the_code(parts: dict[str, Part], steps: Steps) -> None:
    facts = parts["spellings"].facts["derivative"]
    assert facts["at_q"] == {"by_z": 3.0, "by_x": 6.0} and facts["rounded"] == {"by_z": 0.0, "by_x": 0.0}
    assert facts["at_z"] == {"by_z": pytest.approx(5.88), "by_x": pytest.approx(11.76)}
    assert facts["decoder"]["at_q"] == pytest.approx(parts["spellings"].facts["first"]["at_z"], rel=1e-4)
    model = published.trained()
    x, z = steps.x, steps.z.detach().requires_grad_()
    (at_z,) = torch.autograd.grad((model.decoder(z) - x).square().mean(), z)
    (at_q,) = torch.autograd.grad(steps.reconstruction, steps.z_q, retain_graph=True)
    assert facts["decoder"]["elsewhere"] == pytest.approx(float(at_z.norm()), rel=1e-4)
    cosine = float((at_z * at_q).sum() / at_z.norm() / at_q.norm())
    assert facts["decoder"]["cosine"] == pytest.approx(cosine, abs=1e-4)


def test_what_the_slip_was_trained_for_and_what_its_indices_give(parts: dict[str, Part], steps: Steps) -> None:
    model = published.trained(published.Code(through=slip))
    z = model.encoder(steps.x).permute(0, 2, 3, 1)
    e = model.codebook[torch.cdist(z.reshape(-1, DIM), model.codebook).argmin(1)].view_as(z)
    for name, given in (("shown", 2 * z - e), ("decoded", e)):
        error = (model.decoder(given.permute(0, 3, 1, 2)) - steps.x).square().mean()
        assert parts["spellings"].facts["slip"]["trained"][name] == pytest.approx(error.item(), rel=1e-2)


def test_means_and_the_published_sums_are_two_objectives(parts: dict[str, Part], steps: Steps) -> None:
    """Per image: squares summed over pixels, and over a vector, averaged over the vectors (section 3.2)."""
    sums = parts["chain"].facts["sums"]
    model, count = published.trained(), len(steps.x)
    z = model.encoder(steps.x)
    flat = z.permute(0, 2, 3, 1).reshape(-1, DIM)
    e = model.codebook[steps.k].detach()
    z_q = (flat + (e - flat).detach()).view(count, 8, 8, DIM).permute(0, 3, 1, 2)
    reconstruction = (model.decoder(z_q) - steps.x).square().sum() / count
    commitment = BETA * (flat - e).square().sum() / len(flat)
    norms = [float(torch.autograd.grad(t, z, retain_graph=True)[0].norm()) for t in (commitment, reconstruction)]
    assert sums["published"] == pytest.approx(norms[0] / norms[1], rel=1e-3)
    assert sums["share"] == pytest.approx(norms[0] / norms[1] * 3 * 32 * 32 / DIM, rel=1e-3)


# --- the chain ----------------------------------------------------------------------------------------------------


def test_norms_are_equal_where_the_gradient_is_copied(parts: dict[str, Part], steps: Steps) -> None:
    facts = parts["chain"].facts
    arrived = torch.autograd.grad(steps.reconstruction, steps.z, retain_graph=True)[0].norm().item()
    for name in ("z_q", "z_q_flat", "z_flat", "z"):
        assert facts["norms"][name]["reconstruction"] == {"norm": pytest.approx(arrived, rel=1e-5), "kind": "flows"}
        assert facts["norms"][name]["same_numbers"]
    kinds = {name: tuple(row[loss]["kind"] == "flows" for loss in ("reconstruction", "commitment", "codebook"))
             for name, row in facts["norms"].items()}  # fmt: skip
    assert kinds == {
        "x_hat": (True, False, False),
        "z_q": (True, False, False),
        "z_q_flat": (True, False, False),
        "z_flat": (True, True, False),
        "z": (True, True, False),
        "encoder": (True, True, False),
        "codebook": (False, False, True),
    }
    assert facts["stopped"] == {"norm": 0.0, "kind": "no path"}
    assert max(facts["algebra"].values()) < 1e-6


def test_the_two_losses_gradients_in_numpy(parts: dict[str, Part], steps: Steps) -> None:
    norms = parts["chain"].facts["norms"]
    e = published.trained().codebook.detach().double().numpy()
    z = steps.z_flat.detach().double().numpy()
    chosen = ((z[:, None] - e) ** 2).sum(2).argmin(1)
    assert (chosen == steps.k.numpy()).mean() > 0.999  # float32 by expansion may part ties otherwise
    residual = z - e[steps.k.numpy()]
    by_z, by_e = 2 * BETA * residual / residual.size, np.zeros_like(e)
    np.add.at(by_e, steps.k.numpy(), -2 * residual / residual.size)
    assert norms["z_flat"]["commitment"]["norm"] == pytest.approx(np.linalg.norm(by_z), rel=1e-5)
    assert norms["codebook"]["codebook"]["norm"] == pytest.approx(np.linalg.norm(by_e), rel=1e-5)


def test_reshaping_without_permuting_mixes_every_row(parts: dict[str, Part]) -> None:
    z = torch.arange(2 * DIM * 64).view(2, DIM, 8, 8)
    for n, row in enumerate(published.permuted(z)):
        b, h, w = np.unravel_index(n, (2, 8, 8))
        assert torch.equal(row, z[b, :, h, w])
    assert torch.equal(reshaped(z)[0], z[0, 0, 0])
    for code in (LAYOUTS["permuted, and back"], LAYOUTS["reshaped, and back"]):
        assert torch.equal(code.unflatten(code.flatten(z), z.shape), z)
    layouts = parts["chain"].facts["layouts"]
    found = [(row["positions"], row["channels"], row["share_mixed"]) for row in layouts["all"].values()]
    assert found == [(1, DIM, 0.0), (8, 1, 1.0), (1, DIM, 0.0), (8, 1, 1.0)]
    right, fault, back, _ = layouts["all"].values()
    assert fault["distance"] > 2 * right["distance"] and min(fault["error"], back["error"]) > 1.5 * right["error"]


def test_the_graph_of_the_published_code(parts: dict[str, Part], steps: Steps) -> None:
    graph = parts["chain"].facts["graph"]
    coloured = {(s["source"], s["target"]): set(s["losses"]) for s in graph["steps"] if s["losses"]}
    assert coloured == {
        ("reconstruction", "decoder"): {"reconstruction"},
        ("decoder", "Add"): {"reconstruction"},
        ("Add", "z_flat"): {"reconstruction"},
        ("z_flat", "encoder"): {"reconstruction", "commitment"},
        ("codebook loss", "Embedding"): {"codebook"},
        ("Embedding", "codebook e"): {"codebook"},
        ("commitment loss", "z_flat"): {"commitment"},
    }
    gray = {(s["source"], s["target"]) for s in graph["steps"] if not s["losses"] and not s["cut"]}
    assert {("Mm", "codebook e"), ("Pow", "codebook e"), ("Pow#2", "z_flat"), ("Add#2", "Sub#2")} <= gray
    for loss in (steps.reconstruction, steps.codebook, steps.commitment):
        assert torch.autograd.grad(loss, steps.distances, retain_graph=True, allow_unused=True) == (None,)
    assert graph["distances_require_grad"] and not graph["indices_require_grad"]
    assert [step["cut"] for step in graph["steps"] if step["cut"]] == ["detach"] * 3 + ["k", "no derivative"]
    figure = parts["chain"].figures["graph"]
    assert [figure.count(f'<g class="c{i}">') for i in range(3)] == [4, 2, 2]


# --- prose --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rounding", "spellings", "chain"])
def test_prose_shows_what_there_is_and_its_anchors_are_its_own(name: str, parts: dict[str, Part]) -> None:
    text = resources.files("vqkit.gradients.explain").joinpath("prose", f"{name}.html").read_text("utf-8")
    places = re.findall(r"\{\{(\w+): ([^}|]+?)\s*(?:\|[^}]*)?\}\}", text)
    for kind, shown in (("table", parts[name].tables), ("figure", parts[name].figures)):
        assert sorted(n for k, n in places if k == kind) == sorted(shown)
    for _, path in (place for place in places if place[0] == "fact"):
        value: Any = parts[name].facts
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert isinstance(value, (int, float, str, list))

    class Anchors(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for key, value in attrs if key == "id"]

    anchors = Anchors()
    anchors.feed(text)
    assert len(set(anchors.found)) == len(anchors.found) >= 4
    assert all(anchor.startswith(f"{name}-") for anchor in anchors.found)
