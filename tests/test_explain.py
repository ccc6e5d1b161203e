"""`vqkit explain`: the whole page, its text and its data, and the command; short trainings stand in for long ones."""

from __future__ import annotations

import inspect
import json
import re
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vqkit.gradients.explain.page as explain_page
from tests.command import call
from vqkit.gradients.explain.page import PARTS, Explanation, explain, fact, written
from vqkit.pages import number

if TYPE_CHECKING:
    from tests.browser import Opener
DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def explanation(told: list[str]) -> Explanation:
    """Every part; those that train models to compare them do so for a few steps."""
    short = [partial(part, steps=6) if "steps" in inspect.signature(part).parameters else part for part in PARTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain_page, "PARTS", tuple(short))
        return explain(told.append)


@pytest.fixture(scope="module")
def path(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "page.html"
    path.write_text(explanation.to_page(), encoding="utf-8")
    return path


def test_whoever_waits_is_told_what_is_measured(explanation: Explanation, told: list[str]) -> None:
    assert [any(said.startswith(f"part {i} of 6: ") for said in told) for i in range(1, 7)] == [True] * 6


def test_the_page_is_whole(path: Path) -> None:
    html = path.read_text(encoding="utf-8")
    assert "{{" not in html
    assert len(html) < 400_000
    anchors = re.findall(r'\bid="([^"]+)"', html)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(anchors)
    assert {part.__name__ for part in PARTS} <= set(anchors)
    assert re.findall(r'(?:src|href)="(?!#|data:)', html) == []


def test_the_page_in_the_docs_has_the_same_anchors_and_facts(path: Path, explanation: Explanation) -> None:
    """It was made by the whole command, so its numbers are others where models were trained for longer."""
    html, shown = (p.read_text(encoding="utf-8") for p in (path, DOCS / "explain.html"))
    assert set(re.findall(r'\bid="([^"]+)"', html)) == set(re.findall(r'\bid="([^"]+)"', shown))
    kept = json.loads((DOCS / "explain.json").read_text(encoding="utf-8"))
    facts = json.loads(json.dumps(explanation.to_json()))
    assert kept["rounding"] == facts["rounding"]
    assert _paths(kept) == _paths(facts)


def test_the_page_in_the_docs_has_the_text_of_today() -> None:
    shown = (DOCS / "explain.html").read_text(encoding="utf-8")
    for part in PARTS:
        text = resources.files("vqkit.gradients.explain").joinpath("prose", f"{part.__name__}.html").read_text("utf-8")
        for stretch in re.split(r"\{\{.*?\}\}", text):
            assert stretch in shown, f"{part.__name__}: {stretch[:80]!r}: make docs/explain.html anew"


def _paths(facts: object, at: str = "") -> set[str]:
    """Dotted paths of every fact; of lists the first entry's, as their length depends on the steps."""
    if isinstance(facts, dict):
        return {path for name, value in facts.items() for path in _paths(value, f"{at}.{name}")}
    if isinstance(facts, list) and facts and isinstance(facts[0], dict):
        return _paths(facts[0], f"{at}.0")
    return {at}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_fits_and_says_nothing_on_the_console(open_page: Opener, path: Path, width: int, dark: bool) -> None:
    page = open_page(path, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) == dark
    for name in (part.__name__ for part in PARTS):
        page.click(f'nav a[href="#{name}"]')
        assert page.locator(f"#{name}").is_visible()


def test_all_that_scrolls_is_reached_by_keyboard(open_page: Opener, path: Path) -> None:
    page = open_page(path, width=360)
    unreached = page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex < 0).length")
    assert unreached == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#rounding"


def test_the_text_has_every_table_and_the_json_every_fact(explanation: Explanation) -> None:
    text = explanation.to_text()
    for part in explanation.parts:
        for table in part.tables.values():
            assert table.title in text
            for row in table.rows:
                assert all(number(cell) in text for cell in row if cell is not None)
    facts = json.loads(json.dumps(explanation.to_json(), allow_nan=False))
    assert fact(facts, "rounding.through.gradient") == [2, 2]
    assert fact(facts, "rounding.rounded.gradient") == [0, 0]
    assert fact(facts, "spellings.derivative.at_q.by_z") == 3
    assert written(fact(facts, "spellings.derivative.at_z.by_z"), ".2f") == "5.88"
    assert written(fact(facts, "rows.ema.after_1")) == "[5.263, 0.111]"


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(explanation: Explanation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command with the explanation that was measured above: what is tested is where it goes."""
    monkeypatch.setattr(explain_page, "explain", lambda say: explanation)
    monkeypatch.chdir(tmp_path)


def test_the_command_writes_a_page(quick: None, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "explain") == (0, "the page is vqkit-explain.html\n", "")
    assert Path("vqkit-explain.html").read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    code, out, err = call(capsys, "explain", "-o", "vqkit-explain.html")
    assert (code, out) == (2, "")
    assert "exists already and is not overwritten" in err


def test_text_and_json_write_no_page_unless_asked(
    quick: None, explanation: Explanation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "explain", "--text") == (0, explanation.to_text() + "\n", "")
    assert list(Path().iterdir()) == []
    code, out, err = call(capsys, "explain", "--json", "-o", "p.html")
    assert (code, err) == (0, "the page is p.html\n")
    assert json.loads(out) == json.loads(json.dumps(explanation.to_json()))
    assert Path("p.html").exists()


def test_slips_are_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def never(say: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(explain_page, "explain", never)
    monkeypatch.chdir(tmp_path)
    for arguments, said in [
        (("--text", "--json"), "--text and --json both print: choose one"),
        (("-o", "nowhere/p.html"), "nowhere is no directory to write into"),
        (("-o", ""), "-o is empty: name the page to write"),
        (("--pages",), "--pages"),
    ]:
        code, out, err = call(capsys, "explain", *arguments)
        assert (code, out) == (2, "")
        assert said in err
