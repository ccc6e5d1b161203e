"""A whole page in one string: it opens without a network, in light and dark, on a telephone and on paper."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import NamedTuple

from vqkit.pages.style import CSS

# What the page may load: images and styles that it carries itself, whatever text got into it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Text that is markup already. Made by `tag`; a plain `str` is text and gets escaped."""


def tag(name: str, attributes: Mapping[str, object] | None = None, *children: str) -> Html:
    """One element; attribute values and plain-string children are escaped.

    >>> tag("a", {"href": "#x", "title": '"'}, "1 & 2")
    '<a href="#x" title="&quot;">1 &amp; 2</a>'
    """
    pairs = "".join(f' {key}="{escape(str(value))}"' for key, value in (attributes or {}).items())
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{pairs}>" if name == "img" else f"<{name}{pairs}>{inner}</{name}>")


def folded(summary: str, *children: str) -> Html:
    """Content behind a line that opens it; printed open."""
    return tag("details", None, tag("summary", None, summary), *children)


class Section(NamedTuple):
    """A part of a page: a title, the content, and a sentence or two before it that say what is to be seen."""

    title: str
    content: Sequence[Html]
    lead: str = ""
    name: str = ""  # its anchor; without one, s and its number


def page(title: str, sections: Sequence[Section], subtitle: str, top: Html, script: str = "", style: str = "") -> str:
    """A complete HTML5 document; `top` stands between the title and the list of sections.

    `style` is CSS after the page's own. `script` is JavaScript that runs when the page is there; it alone may run, for
    the policy names it by its SHA-256. ValueError where HTML would end it early.
    """
    if end := re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError(
            f"script contains {end[0]!r}, which HTML does not read as JavaScript; write it as '<' + '...'."
        )
    links, parts = [], []
    for i, section in enumerate(sections, 1):
        name = section.name or f"s{i}"
        links.append(tag("li", None, tag("a", {"href": f"#{name}"}, section.title)))
        heading = tag("h2", {"id": f"{name}-title"}, section.title)
        lead = tag("p", {"class": "lead"}, section.lead) if section.lead else ""
        parts.append(tag("section", {"id": name, "aria-labelledby": f"{name}-title"}, heading, lead, *section.content))
    header = tag("header", None, tag("h1", None, title), tag("p", None, subtitle))
    nav = tag("nav", {"aria-label": "Sections"}, tag("ol", None, *links))
    end_of_body = [tag("script", None, Html(script))] if script else []
    body = tag("body", None, header, top, nav, tag("main", None, *parts), *end_of_body)
    return f"{_head(title, script, CSS + style)}{body}</html>\n"


def _head(title: str, script: str, style: str) -> str:
    digest = b64encode(sha256(script.encode("utf-8")).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>{style}</style>
{tag("title", None, title)}</head>"""
