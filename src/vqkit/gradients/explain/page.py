"""The explanation as a page, as text and as data."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from importlib import resources
from typing import Any, NamedTuple

import torch

import vqkit
from vqkit.gradients.explain.chain import chain
from vqkit.gradients.explain.learning import learning
from vqkit.gradients.explain.parts import Part, Say
from vqkit.gradients.explain.plane import SCRIPT, STYLE, plane
from vqkit.gradients.explain.rounding import rounding
from vqkit.gradients.explain.rows import rows
from vqkit.gradients.explain.spellings import spellings
from vqkit.gradients.text import aligned
from vqkit.pages import Html, Section, number, page, table
from vqkit.pages.graphs import CSS

PARTS: tuple[Callable[[Say], Part], ...] = (rounding, spellings, chain, learning, rows, plane)
# Here a table stands in the text, so its title is read; elsewhere on pages it is for those who hear them.
CAPTIONS = """
.grid caption{position:static;width:auto;height:auto;clip-path:none;text-align:left;white-space:normal;
font-size:.9375rem;font-weight:600;padding-bottom:.3rem;max-width:88vw} h3+:is(.graphs,figure,.scroll){margin-top:.9rem}
"""
TITLE = "Where the gradients of a VQ-VAE go"
_PLACE = re.compile(r"\{\{\s*(fact|table|figure):\s*([\w.-]+)\s*(?:\|\s*([^}\s]+)\s*)?\}\}")


class Explanation(NamedTuple):
    """Everything that was measured, in order, and with what."""

    parts: tuple[Part, ...]
    measured_with: str

    def to_page(self) -> str:
        """One self-contained HTML document."""
        sections = [
            Section(f"{i}. {part.title}", [prose(part)], name=part.name) for i, part in enumerate(self.parts, 1)
        ]
        subtitle = (
            f"Measured by real backward passes when this page was made, with {self.measured_with}; where a number "
            "comes from elsewhere, it says so."
        )
        return page(TITLE, sections, subtitle, Html(""), script=SCRIPT, style=CAPTIONS + CSS + STYLE)

    def to_text(self) -> str:
        """The tables, for a terminal."""
        blocks = [f"{TITLE}\n{self.measured_with}"]
        for i, part in enumerate(self.parts, 1):
            blocks.append(f"{i}. {part.title}")
            for t in part.tables.values():
                cells = [["" if v is None else number(v) for v in row] for row in t.rows]
                blocks.append(f"{t.title}\n{aligned([list(t.columns), *cells])}")
        return "\n\n".join(blocks)

    def to_json(self) -> dict[str, Any]:
        return {"measured_with": self.measured_with, **{part.name: part.facts for part in self.parts}}


def explain(say: Say) -> Explanation:
    """Measures every part; about a minute on two cores. ``say`` is told what comes next."""
    parts, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small; more threads would wait for one another longer than they work
    try:
        for i, measure in enumerate(PARTS, 1):

            def say_part(text: str, i: int = i) -> None:
                say(f"part {i} of {len(PARTS)}: {text}")

            parts.append(measure(say_part))
    finally:
        torch.set_num_threads(threads)
    return Explanation(tuple(parts), f"vqkit {vqkit.__version__}, PyTorch {torch.__version__}")


def prose(part: Part) -> Html:
    """A part's text with what was measured in its places: {{fact: a.b | .2f}}, {{table: name}}, {{figure: name}}."""
    text = resources.files("vqkit.gradients.explain").joinpath("prose").joinpath(f"{part.name}.html").read_text("utf-8")

    def fill(match: re.Match[str]) -> str:
        kind, name, form = match.groups()
        if kind == "figure":
            return part.figures[name]
        if kind == "table":
            shown = part.tables[name]
            cells = [[None if value is None else written(value) for value in row] for row in shown.rows]
            return table(shown.columns, cells, shown.title)
        return escape(written(fact(part.facts, name), form))

    return Html(_PLACE.sub(fill, text))


def fact(facts: Any, path: str) -> Any:
    """What stands at a dotted path; a list is entered by index.

    >>> fact({"a": {"b": [1, 2]}}, "a.b.1")
    2
    """
    for name in path.split("."):
        facts = facts[int(name)] if isinstance(facts, list) else facts[name]
    return facts


def written(value: Any, form: str | None = None) -> str:
    """A fact as the page writes it.

    >>> written([2.0, -0.34567]), written(0.34567, ".0%"), written(-0.001, ".2f"), written(True)
    ('[2, −0.3457]', '35%', '0.00', 'yes')
    """
    if isinstance(value, list):
        return f"[{', '.join(written(v, form) for v in value)}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = format(value, form) if form else number(value)
    if isinstance(value, str):
        return text
    return text.lstrip("-") if not re.search("[1-9]", text) else text.replace("-", "\N{MINUS SIGN}")
