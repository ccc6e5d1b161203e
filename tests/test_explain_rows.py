"""`vqkit explain`, part 5: rows, optimizers and averages against closed forms; TensorFlow against its record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.absent import absent
from tests.test_pages import Tree
from vqkit.gradients.explain import rows as rows_part
from vqkit.gradients.explain import tensorflow
from vqkit.gradients.explain.page import prose
from vqkit.gradients.explain.rows import rows


@pytest.fixture(scope="module")
def part():
    state = torch.get_rng_state()
    made = rows(lambda _: None)
    assert torch.equal(torch.get_rng_state(), state)
    return made


# -- gather


def test_a_gather_gives_each_row_as_often_as_it_was_looked_up(part):
    held = part.facts["gather"]
    for way in ("e[k]", "F.embedding(k, e)", "F.embedding(k, e, sparse=True)"):
        assert held[way]["sums"] == [0, 4, 0, 8, 0, 0, 0, 4]  # four columns; row 3 twice
    assert [held[way]["type"] for way in list(held)[:4]] == ["dense", "dense", "sparse_coo", "dense"]
    assert held["F.embedding(k, e, sparse=True)"]["entries"] == [1, 3, 3, 7]
    assert held["the same, and the table used whole"]["entries"] == list(range(8))


# -- optimizers


def test_rows_that_are_not_looked_up_move_as_the_formulas_say(part):
    """Row 0 begins with entries up to 2 from the target 1: its largest gradient is 4. Row 2's largest entry is 1.5."""
    idle = part.facts["idle"]
    for still in ("PyTorch SGD", "PyTorch SGD, sparse", "PyTorch SparseAdam, sparse"):
        assert idle[still] == {"never": 0, "next": 0, "later": 0}
    momentum = {"never": 0, "next": 0.01 * 0.9 * 4, "later": 0.01 * 4 * sum(0.9**i for i in range(1, 101))}
    assert idle["PyTorch momentum"] == pytest.approx(momentum, rel=1e-12)
    assert idle["PyTorch AdamW"]["never"] == pytest.approx(1.5 * (1 - (1 - 0.01 * 0.01) ** 101), rel=1e-9)
    # After one gradient g the averages are 0.1 g and 0.001 g^2; a step later 0.09 g and 0.000999 g^2, each corrected.
    adam = 0.01 * (0.09 / (1 - 0.9**2)) / (0.000999 / (1 - 0.999**2)) ** 0.5
    assert idle["PyTorch Adam"]["next"] == pytest.approx(adam, rel=1e-6)
    assert idle["PyTorch Adam"]["never"] == 0 < idle["PyTorch Adam"]["later"]


def test_keras_moves_idle_rows_as_pytorch_does_with_a_dense_gradient(part):
    """So "only the selected rows are updated" is true of plain SGD alone."""
    for name in ("SGD", "momentum", "Adam", "AdamW"):
        found, dense = (part.facts["idle"][f"{who}"] for who in (f"Keras {name}, IndexedSlices", f"PyTorch {name}"))
        assert found == pytest.approx(dense, rel=1e-3, abs=1e-7)


def test_by_hand_is_each_optimizer_and_a_wrong_formula_is_seen(part, monkeypatch):
    assert set(part.facts["by_hand"]) == {"SGD", "momentum", "Adam", "AdamW"}
    assert max(part.facts["by_hand"].values()) < 1e-14
    plain = rows_part.by_hand
    monkeypatch.setattr(
        rows_part, "by_hand", lambda name, *state: plain("SGD" if name == "momentum" else "Adam", *state)
    )
    assert rows_part._difference("momentum") > 1e-3
    assert rows_part._difference("AdamW") > 1e-4


# -- averages


def test_averages_settle_where_their_fixed_points_are(part):
    ema = part.facts["ema"]
    assert ema["truth"] == 0.1
    assert ema["after_1"] == pytest.approx([10 / 1.9, 10 / (1 + 0.9 * 99)], rel=1e-6)
    assert ema["after_99"] == pytest.approx([9 / 1.9, 9 / (0.9 + 99)], rel=1e-6)
    assert [round(v, 2) for v in ema["after_1"]] == [5.26, 0.11]


# -- what the losses are for


def test_only_the_codebook_loss_moves_the_codes(part):
    kinds = {loss: found["kind"] for loss, found in part.facts["codebook"].items()}
    assert kinds == {"reconstruction": "no path", "codebook": "flows", "commitment": "no path"}


# -- TensorFlow


def test_the_record_says_what_the_text_says():
    record = json.loads(tensorflow.RECORD.read_text(encoding="utf-8"))
    facts = record["facts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert [facts["rounding"][way]["type"] for way in ("plain", "through")] == ["None", "dense"]
    assert facts["gather"] == {"type": "IndexedSlices", "entries": [1, 3, 3, 7]}
    assert facts["dense_use"]["type"] == "dense"
    assert facts["argmin_use"]["type"] == "IndexedSlices"
    assert facts["outside"]["type"] == "None"
    assert "'NoneType' object has no attribute 'indices'" in facts["outside"]["error"]
    assert facts["weights"] == "IndexError: list index out of range"
    assert set(facts["gradient_off"].values()) == {0}
    assert facts["slip"] > 1
    assert "grad_fn must accept keyword argument 'variables'" in facts["call_that_learns"]


def test_tensorflow_still_does_what_is_recorded(part):
    if find_spec("tensorflow") is None:
        absent("TensorFlow is not installed")
    found, record = part.facts["tensorflow"], json.loads(tensorflow.RECORD.read_text(encoding="utf-8"))
    assert found["source"] == "measured when this page was made"
    flat, recorded = (dict(leaves(facts["facts"])) for facts in (found, record))
    assert flat.keys() == recorded.keys()
    for path, value in recorded.items():
        assert flat[path] == (pytest.approx(value, rel=1e-4, abs=1e-7) if isinstance(value, float) else value), path


def leaves(facts, path=""):
    if not isinstance(facts, dict):
        yield path, facts
        return
    for name, value in facts.items():
        yield from leaves(value, f"{path}.{name}")


def test_where_tensorflow_is_missing_the_record_is_used(monkeypatch):
    monkeypatch.setattr(tensorflow, "find_spec", lambda _: None)
    with tensorflow.measuring() as measured:
        found = measured()
    assert found["source"] == "recorded earlier; TensorFlow is not installed"
    assert found["facts"] == json.loads(tensorflow.RECORD.read_text(encoding="utf-8"))["facts"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exec sleep 60", "TensorFlow took more than 0.5 s"), ("echo 'E: no' >&2; exit 3", "measuring it failed: E: no")],
)
def test_where_measuring_hangs_or_fails_the_record_is_used(monkeypatch, tmp_path, script, reason):
    """In place of Python stands a program that does so."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(tensorflow, "find_spec", lambda _: object())
    monkeypatch.setattr(tensorflow.sys, "executable", str(program))
    with tensorflow.measuring(limit=0.5 if "sleep" in script else 60) as measured:
        found = measured()
    assert found["source"] == f"recorded earlier; {reason}"
    assert found["version"]


def test_measuring_imports_no_torch():
    code = "import sys, vqkit.gradients.explain.tensorflow; print({'torch', 'tensorflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# -- the page


def test_the_text_has_every_number(part):
    json.dumps(part.facts, allow_nan=False)
    text = prose(part)
    Tree(text)
    assert "{{" not in text
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    names = [
        "steps",
        "gather",
        "indexedslices",
        "outside",
        "weights",
        "custom",
        "selected",
        "hand",
        "ema",
        "means",
        "why-codebook",
        "why-commitment",
    ]
    assert {f"rows-{name}" for name in names} <= set(ids)
    assert "stands at 5.26 and counts and sums at 0.11" in " ".join(text.split())
