"""What a part of the explanation consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vqkit.pages import Html, Value

Say = Callable[[str], None]  # tells who waits what is being measured


class Table(NamedTuple):
    """Shown in the page and in the terminal; None is an empty cell."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value | None]]


@dataclass(frozen=True)
class Part:
    """One part of the explanation: measured facts, and what shows them; ``prose/NAME.html`` is put around."""

    name: str  # its anchor in the page
    title: str
    facts: dict[str, Any]  # plain JSON
    tables: dict[str, Table]
    figures: dict[str, Html]
