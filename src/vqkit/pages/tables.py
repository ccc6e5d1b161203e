"""Numbers as a person reads them: one, a headline of a few, a table of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

from vqkit.pages.document import Html, tag

Value = float | int | str
MOST_TEXT = 400  # of a value, so that no configuration makes the page large


def number(value: Value) -> str:
    """Four significant digits, thousands separated; an int in full; a string as it is.

    >>> number(0.00123456), number(31.25), number(65536), number(1234567.0), number("a")
    ('0.001235', '31.25', '65,536', '1,235,000', 'a')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):  # NumPy's too
        return f"{int(value):,}"
    return f"{float(f'{value:.4g}'):,.12g}".replace("nan", "NaN")


def headline(figures: Mapping[str, Value]) -> Html:
    """The few numbers that sum a page up, large. A unit in brackets ends a name: "PSNR (dB)"."""
    cells = []
    for name, value in figures.items():
        label, _, unit = name.partition(" (")
        small = tag("span", {"class": "unit"}, " " + unit.removesuffix(")"))
        cells.append(tag("div", None, tag("dt", None, label), tag("dd", None, number(value), small)))
    return tag("dl", {"class": "headline"}, *cells)


def key_values(columns: Mapping[str, Mapping[str, Value]], caption: str) -> Html:
    """A row for each name, a column for each owner; of several, a head names each beside the key of its line in charts.

    A dash stands for a value that one has not, and a long text is cut. The caption is for those who hear the page.
    """
    heads = [tag("th", {"scope": "col"}, tag("i", {"class": f"key c{i}"}), name) for i, name in enumerate(columns)]
    inner = [tag("thead", None, tag("tr", None, tag("td", None), *heads))] if len(columns) > 1 else []
    for name in dict.fromkeys(name for figures in columns.values() for name in figures):
        texts = (number(figures.get(name, "\N{EN DASH}")) for figures in columns.values())
        cells = (tag("td", None, t if len(t) <= MOST_TEXT else t[:MOST_TEXT] + " …") for t in texts)
        inner.append(tag("tr", None, tag("th", {"scope": "row"}, name), *cells))
    return tag("table", {"class": "pairs"}, tag("caption", None, caption), *inner)


def table(columns: Sequence[str], rows: Sequence[Sequence[Value | None]], caption: str) -> Html:
    """A table with a head; None is an empty cell."""
    head = tag("tr", None, *(tag("th", {"scope": "col"}, name) for name in columns))
    body = (tag("tr", None, *(tag("td", None, "" if v is None else number(v)) for v in row)) for row in rows)
    inner = tag("caption", None, caption), tag("thead", None, head), tag("tbody", None, *body)
    # Where it is wider than the screen, the keyboard must be able to scroll it.
    attributes = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": caption}
    return tag("div", attributes, tag("table", {"class": "grid"}, *inner))
