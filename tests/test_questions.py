"""docs/questions.md: every question is answered with a number, and each number is in the page it links to.

A number is a link whose title names the fact: [6](explain.html#rounding-through "rounding.through.value | .2f"). After
`vqkit explain -o docs/explain.html --json > docs/explain.json`, `python -m tests.test_questions` writes them anew.
"""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from vqkit.gradients.explain.page import fact, written

DOCS = Path(__file__).parent.parent / "docs"
QUESTIONS = DOCS / "questions.md"
LINK = re.compile(r'\[([^\]]*|\[[^\]]*\])\]\(explain\.html#([\w-]+) "([^"|]+?)(?: \| ([^"]+))?"\)')


def filled(text: str, facts: object) -> str:
    def fill(match: re.Match[str]) -> str:
        _, anchor, path, form = match.groups()
        value = written(fact(facts, path), form).replace("|", "\\|")
        title = path if form is None else f"{path} | {form}"
        return f'[{value}](explain.html#{anchor} "{title}")'

    return LINK.sub(fill, text)


@pytest.fixture(scope="module")
def text() -> str:
    return QUESTIONS.read_text(encoding="utf-8")


def test_each_figure_is_what_the_page_measured(text: str) -> None:
    facts = json.loads((DOCS / "explain.json").read_text(encoding="utf-8"))
    assert len(LINK.findall(text)) > 50
    assert text == filled(text, facts)
    assert text.count("explain.html#") == len(LINK.findall(text)) + text.count("](explain.html#plane)")


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The text of the page from each anchor to the next, and under a part's name none."""
    page = (DOCS / "explain.html").read_text(encoding="utf-8")
    page = re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL)
    _, *found = re.split(r'<(?:section|h2|h3|p|li)[^>]*\bid="([\w-]+)"[^>]*>', page)
    texts = (" ".join(unescape(re.sub(r"<[^>]+>", " ", block)).split()) for block in found[1::2])
    return dict(zip(found[::2], texts, strict=True))


def test_each_figure_is_where_its_link_leads(text: str, blocks: dict[str, str]) -> None:
    assert set(re.findall(r"explain\.html#([\w-]+)", text)) <= set(blocks)
    for shown, anchor, path, _ in LINK.findall(text):
        whole = rf"(?<![\w.\u2212-]){re.escape(shown)}(?!\w|\.\d)"  # no 3 in 13, 0.3 or 3.5
        assert re.search(whole, blocks[anchor]), f"{path} = {shown} is not at #{anchor}"


def test_each_question_has_a_figure_and_an_anchor(text: str) -> None:
    questions = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(questions) >= 16
    for question in questions:
        assert "](explain.html#" in question, question.splitlines()[0]


def test_each_correction_has_a_figure(text: str) -> None:
    corrections = re.split(r"^- ", text.partition("## Common answers, corrected")[2], flags=re.MULTILINE)[1:]
    assert len(corrections) >= 12
    for correction in corrections:
        assert LINK.search(correction), correction.splitlines()[0]


def test_a_figure_that_changed_is_seen(text: str) -> None:
    facts = json.loads((DOCS / "explain.json").read_text(encoding="utf-8"))
    facts["rounding"]["through"]["value"] = 7.0
    assert text != filled(text, facts)


if __name__ == "__main__":
    measured = json.loads((DOCS / "explain.json").read_text(encoding="utf-8"))
    QUESTIONS.write_text(filled(QUESTIONS.read_text(encoding="utf-8"), measured), encoding="utf-8")
