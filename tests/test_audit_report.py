"""The audit as a whole: what it says to bad input, what it leaves as it was, and how it tells what it found."""

from __future__ import annotations

import json
import random
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.plain_layers import (
    Averaged,
    Notebook,
    Triple,
)  # fmt: skip
from vqkit.gradients.audit import audit, audit_class, values
from vqkit.gradients.audit.report import LAWS, Audit, Finding, Kept, NotMeasured, law
from vqkit.gradients.audit.subject import Subject


@pytest.fixture
def checks_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of how codebooks learn take longer, and have tests of their own."""
    monkeypatch.setattr("vqkit.gradients.audit.run.CHECKS", values.CHECKS)


# --- bad input ----------------------------------------------------------------------------------------------------


class NeedsCuda(Triple):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(z.cuda())


class Hangs(Triple):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        while True:
            time.sleep(0.01)


def build_on_cuda() -> nn.Module:
    return Triple().cuda()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (3, r"layer is a int; it must be a torch\.nn\.Module, or make one"),
        (lambda: "text", r"layer \(<lambda>\) makes a str; it must make a torch\.nn\.Module"),
        (partial(Triple, 32, 16, 0.25, 1), r"layer \(Triple\) cannot be built: TypeError: .*positional arguments"),
        (nn.Linear(16, 16), r"layer \(Linear\) is no vector quantizer of dim=16: it returns no index for each vector"),
        (nn.Identity(), r"layer \(Identity\) is no vector quantizer: it returns nothing of the input's shape but"),
        (nn.Linear(16, 5), r"layer \(Linear\) is no vector quantizer"),
        (nn.Embedding(9, 16), r"layer \(Embedding\) takes no vectors of dim=16"),
        (Triple(dim=8), r"layer \(Triple\) takes no vectors of dim=16: dim is the length of its vectors\. It said: "),
        (Notebook(dim=8), r"layer \(Notebook\) is no vector quantizer of dim=16"),
        pytest.param(
            *(NeedsCuda(), r"layer \(NeedsCuda\) needs CUDA, and an audit runs on the CPU"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
        ),
        pytest.param(
            *(build_on_cuda, r"layer \(build_on_cuda\) needs CUDA, and an audit runs on the CPU"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
        ),
        (Hangs(), r"layer \(Hangs\) gave no answer in 0\.5 s: it hangs\."),
    ],
)
def test_bad_layers(layer: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        audit(layer, seconds=0.5 if isinstance(layer, Hangs) else 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("dim", 0), ("dim", -3), ("seconds", 0)])
def test_bad_numbers(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive"):
        audit(Triple(), **{name: value})


def test_a_layer_that_hangs_ends_its_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="hangs"):
        audit(Hangs(), seconds=0.1)
    (own,) = set(threading.enumerate()) - before or {threading.current_thread()}
    if own is not threading.current_thread():
        own.join(10)
        assert not own.is_alive()


MODULE = """
from torch import nn
from tests.plain_layers import Triple
import sys

class Scaled(Triple):
    def __init__(self, codes, dim, scale=1.0, kind="mean"):
        assert kind == "mean", f"no such kind: {kind}"
        super().__init__(codes, dim)

class Unreduced(Triple):
    def forward(self, z):
        z_q, indices, _ = super().forward(z)
        q = self.embedding.weight[indices]
        return z_q, indices, (q - z.detach()).square() + 0.25 * (z - q.detach()).square()

class Leaves(Triple):
    def __init__(self):
        raise SystemExit(3)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_layers.py").write_text(MODULE)
    (tmp_path / "half_written.py").write_text("def broken(:\n")
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder", "checks_of_values")
def test_a_class_is_found_in_the_current_folder() -> None:
    report = audit_class("their_layers:Scaled", ["codes=20", "dim=12", "scale=-1e-3", "kind='mean'"])
    assert report.subject == "Scaled"
    assert report.conventions["codebook"] == "embedding.weight, (20, 12), a parameter"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        ("their_layers", [], r"the layer is 'their_layers'; it must be package\.module:Class"),
        ("no_such_module:Layer", [], r"no_such_module:Layer cannot be imported: ModuleNotFoundError: No module named"),
        ("half_written:Layer", [], r"half_written:Layer cannot be imported: SyntaxError"),
        ("leaves_at_once:Layer", [], r"leaves_at_once:Layer cannot be imported: SystemExit: 3"),
        ("their_layers:Unreduced", ["codes=16", "dim=8"], r"loss at '2' has shape \(.*\); it must be a scalar"),
        ("their_layers:Leaves", [], r"layer \(Leaves\) cannot be built: SystemExit: 3"),
        ("their_layers:Missing", [], r"their_layers:Missing cannot be imported: AttributeError: module 'their_layers'"),
        ("their_layers:number", [], r"layer is a int; it must be a torch\.nn\.Module"),
        ("their_layers:Scaled", ["codes"], r"argument 'codes' must be name=literal"),
        ("their_layers:Scaled", ["kind=mean"], r"argument 'kind=mean' must be name=literal.*\"mode='mean'\""),
        ("their_layers:Scaled", ["codes=__import__('os')"], r"must be name=literal"),
        ("their_layers:Scaled", ["codes=8"], r"layer \(Scaled\) cannot be built: TypeError: .*'dim'"),
        ("their_layers:Scaled", ["codes=8", "dim=4", "kind='x'"], r"cannot be built: AssertionError: no such kind: x"),
    ],
)
def test_bad_classes(path: str, arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        audit_class(path, arguments)
    assert "\n" not in str(caught.value)


# --- the audit itself ---------------------------------------------------------------------------------------------


class Draws(Averaged):
    """Learns in forward, warns, and draws from every generator there is."""

    def forward(self, z: Tensor) -> Tensor:
        torch.rand(1), np.random.rand(), random.random()
        return super().forward(z)


def test_nothing_of_the_caller_changes() -> None:
    layer = Draws().eval()
    layer.embed.grad = torch.ones_like(layer.embed)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with torch.no_grad():
        audit(layer)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert not layer.training
    assert torch.equal(layer.embed.grad, torch.ones_like(layer.embed))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.usefixtures("checks_of_values")
def test_the_threads_of_the_caller_stay() -> None:
    own = torch.get_num_threads()
    torch.set_num_threads(own + 1)
    try:
        audit(Triple())
        assert torch.get_num_threads() == own + 1
    finally:
        torch.set_num_threads(own)


@pytest.mark.usefixtures("checks_of_values")
def test_two_audits_of_one_layer_are_equal() -> None:
    layer = Averaged()
    assert audit(layer) == audit(layer)


def test_one_check_that_raises_or_hangs_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def law_05_raises(subject: object) -> list[Finding]:
        raise KeyError("a fault of the check")

    def law_06_hangs(subject: object) -> list[Finding]:
        while True:
            time.sleep(0.01)

    def law_20_holds(subject: object) -> list[Finding]:
        """It holds."""
        return []

    monkeypatch.setattr("vqkit.gradients.audit.run.CHECKS", (law_05_raises, law_06_hangs, law_20_holds))
    report = audit(Triple(), seconds=0.5)
    assert report.unmeasured == (
        ("law_05_raises", "KeyError: 'a fault of the check'"),
        ("law_06_hangs", "gave no answer in 0.5 s"),
    )
    assert report.kept == (Kept(law(20), "It holds"),)


def test_a_check_may_wreck_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def law_01_wrecks(subject: Subject) -> list[Finding]:
        """It is wrecked."""
        subject.rows.zero_()
        return []

    def law_02_holds(subject: Subject) -> list[Finding]:
        """The codes are there."""
        if not subject.rows.any():
            raise NotMeasured("the codes are gone")
        return []

    monkeypatch.setattr("vqkit.gradients.audit.run.CHECKS", (law_01_wrecks, law_02_holds))
    assert not audit(Triple()).unmeasured


REPORT = Audit(
    "Their<Layer>",
    {"takes": "(N, D)"},
    (
        Finding(law(20), "hazard", "e1", "m1", "w1", "f1", 10),
        Finding(law(6), "fault", "e2", "m2 < 3", "w2", "f2", 40),
        Finding(law(1), "fault", "e3", "m3", "w3", "f3", 10),
        Finding(law(2), "hazard", "e4", "m4 " * 60, "w4", "f4", 10),
    ),
    (Kept(law(5), "copied"), Kept(law(5), "no leak")),
    (("law_13_start", "it does not start"),),
)


def test_the_order_is_faults_first_and_causes_first() -> None:
    assert [f.law.number for f in REPORT.broken] == [1, 6, 2, 20]
    assert not REPORT.ok
    assert Audit("x", {}, REPORT.findings[:1], (), ()).ok


def test_the_text_holds_everything_and_is_no_wider_than_110() -> None:
    text = str(REPORT)
    assert text.splitlines()[0] == "Their<Layer>: 2 faults, 2 hazards, 2 held, 1 not measured"
    assert max(map(len, text.splitlines())) <= 110
    assert text.index("m3") < text.index("m2 < 3") < text.index("m4") < text.index("m1")
    for words in ("Fault: law 6, the losses", "w2", "f2", "copied; no leak", "it does not start", "(N, D)"):
        assert words in text


def test_the_json_is_plain() -> None:
    found = json.loads(json.dumps(REPORT.to_json()))
    assert found["ok"] is False
    assert found["findings"][0] == {
        "law": {"number": 1, "name": "codes are codes"},
        **{"severity": "fault", "expected": "e3", "measured": "m3", "why": "w3", "fix": "f3"},
    }
    assert found["unmeasured"] == [{"check": "law_13_start", "reason": "it does not start"}]


def test_the_page_escapes_and_holds_everything() -> None:
    page = REPORT.to_page()
    assert page.startswith("<!DOCTYPE html>")
    assert "Their&lt;Layer&gt;" in page
    assert "Their<Layer>" not in page
    for words in ("m2 &lt; 3", "Law 1, codes are codes", "copied; no leak", "it does not start"):
        assert words in page
    assert "<p>None.</p>" in Audit("x", {}, (), (), ()).to_page()


def test_the_names_are_those_of_the_laws() -> None:
    laws = (Path(__file__).parent.parent / "docs" / "laws.md").read_text(encoding="utf-8")
    for number, name in LAWS.items():
        assert f"**{number}. {name}".lower() in laws.lower(), (number, name)
