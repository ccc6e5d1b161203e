"""HTML that cannot be injected into: whatever is not `Html` is escaped when it enters a tag."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_VOID = frozenset({"meta", "img", "br", "hr", "link"})


class Html(str):
    """Text that is markup already. Made by `tag` and `join`; a plain `str` is text and gets escaped."""


def join(*children: str) -> Html:
    """The children one after another, plain strings escaped.

    >>> join("a < b", Html("<br>"))
    'a &lt; b<br>'
    """
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def tag(name: str, attributes: Mapping[str, object] | None = None, *children: str) -> Html:
    """One element; attribute values and plain-string children are escaped.

    >>> tag("a", {"href": "#x", "title": '"'}, "1 & 2")
    '<a href="#x" title="&quot;">1 &amp; 2</a>'
    """
    pairs = "".join(f' {key}="{escape(str(value))}"' for key, value in (attributes or {}).items())
    if name in _VOID:
        return Html(f"<{name}{pairs}>")
    return Html(f"<{name}{pairs}>{join(*children)}</{name}>")
