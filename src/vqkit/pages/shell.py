"""A whole page in one string: it opens without a network, in light and dark, on a telephone and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vqkit.pages.markup import Html, tag
from vqkit.pages.style import CSS

# What the page may load: images and styles it carries itself and nothing else, whatever text got into it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A part of a page: a title, a sentence or two that say what is to be seen, and the content."""

    title: str
    content: Sequence[Html]
    lead: str = ""


def page(title: str, sections: Sequence[Section], subtitle: str = "", top: str = "") -> str:
    """A complete HTML5 document; `top` stands between the title and the list of sections."""
    links = (tag("li", None, tag("a", {"href": f"#s{i}"}, section.title)) for i, section in enumerate(sections, 1))
    body = tag(
        "body",
        None,
        tag("header", None, tag("h1", None, title), tag("p", None, subtitle)),
        top,
        tag("nav", {"aria-label": "Sections"}, tag("ol", None, *links)),
        tag("main", None, *(_section(i, section) for i, section in enumerate(sections, 1))),
    )
    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, title),
        tag("style", None, Html(CSS)),
    )
    return "<!DOCTYPE html>\n" + tag("html", {"lang": "en"}, head, body) + "\n"


def _section(place: int, section: Section) -> Html:
    lead = tag("p", {"class": "lead"}, section.lead) if section.lead else ""
    heading = tag("h2", {"id": f"s{place}-title"}, section.title)
    attributes = {"id": f"s{place}", "aria-labelledby": f"s{place}-title"}
    return tag("section", attributes, heading, lead, *section.content)
