"""What an audit found: what is broken, worst first; what holds; what could not be measured."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vqkit.pages import Section, headline, key_values, page, tag

Severity = Literal["fault", "hazard"]

# The names of docs/laws.md, which has no 7 and no 22 yet.
LAWS: dict[int, str] = {
    1: "codes are codes",
    2: "the nearest code",
    3: "nothing else decides",
    4: "round trips",
    5: "the estimator, and nothing into the codebook",
    6: "the losses",
    8: "every gradient",
    9: "what is offered works",
    10: "bounded gain",
    11: "forward changes nothing",
    12: "EMA",
    13: "a start that lasts",
    14: "revival",
    15: "no poison",
    16: "masks and empty batches",
    17: "state",
    18: "ranks",
    19: "graphs",
    20: "memory",
    21: "usage and perplexity",
}


class NotMeasured(Exception):
    """Raised by a check that cannot be made on this layer; says why."""


class Law(NamedTuple):
    """A law of docs/laws.md."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"law {self.number}, {self.name}"


def law(number: int) -> Law:
    return Law(number, LAWS[number])


class Kept(NamedTuple):
    """What was measured and holds."""

    law: Law
    measured: str


@dataclass(frozen=True)
class Finding:
    """One way in which a layer breaks a law.

    ``severity`` is ``"fault"`` where it changes what is learnt or decoded under ordinary use, ``"hazard"`` where it
    needs a condition, which ``measured`` names. Of two of one severity the smaller ``rank`` is nearer to the cause.
    """

    law: Law
    severity: Severity
    expected: str
    measured: str
    why: str
    fix: str
    rank: int = 50

    def told(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("expected", "measured", "why", "fix")}


@dataclass(frozen=True)
class Audit:
    """What ``vqkit.audit`` returns; prints as a table.

    ``conventions`` says what was found out about the layer, ``findings`` what is broken, in the order of the checks,
    ``kept`` what holds, ``unmeasured`` which checks could not be made, and why.
    """

    subject: str
    conventions: dict[str, str]
    findings: tuple[Finding, ...]
    kept: tuple[Kept, ...]
    unmeasured: tuple[tuple[str, str], ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings, faults before hazards, causes before consequences."""
        return tuple(sorted(self.findings, key=lambda f: (f.severity != "fault", f.rank, f.law.number)))

    @property
    def ok(self) -> bool:
        """No fault; there may be hazards."""
        return all(f.severity != "fault" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "ok": self.ok,
            "conventions": self.conventions,
            "findings": [{"law": f.law._asdict(), "severity": f.severity, **f.told()} for f in self.broken],
            "kept": [{"law": k.law._asdict(), "measured": k.measured} for k in self.kept],
            "unmeasured": [{"check": name, "reason": reason} for name, reason in self.unmeasured],
        }

    def __str__(self) -> str:
        counted = (f"{n} {name.removesuffix('s') if n == 1 else name}" for name, n in self._counts().items())
        lines = [f"{self.subject}: {', '.join(counted)}"]
        for title, parts in self._sections():
            for name, rows in parts:
                lines += ["", f"{title.removesuffix('s')}: {name}" if name else title]
                wide = min(max(map(len, rows)), 28)
                for key, text in rows.items():
                    lines += textwrap.wrap(f"  {key:<{wide}}  {text}", 110, subsequent_indent=" " * (wide + 4))
        return "\n".join(lines)

    def to_page(self) -> str:
        """A self-contained HTML page."""
        sections = []
        for title, parts in self._sections():
            content = [key_values({"": rows}, name or title) for name, rows in parts]
            heads = [tag("h3", None, name.capitalize()) for name, _ in parts if name]
            paired = [part for pair in zip(heads, content, strict=True) for part in pair] if heads else content
            sections.append(Section(title, paired or [tag("p", None, "None.")]))
        top = headline({name.capitalize(): count for name, count in self._counts().items()})
        return page(f"Audit of {self.subject}", sections, "Measured against the laws of vqkit.", top)

    def _counts(self) -> dict[str, int]:
        faults = sum(f.severity == "fault" for f in self.findings)
        hazards, held = len(self.findings) - faults, len(self.kept)
        return {"faults": faults, "hazards": hazards, "held": held, "not measured": len(self.unmeasured)}

    def _sections(self) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
        """Title, and in it tables, each with a name or none."""
        laws = sorted({k.law for k in self.kept})
        held = {str(law): "; ".join(k.measured for k in self.kept if k.law == law) for law in laws}
        rest = {"What holds": held, "Not measured": dict(self.unmeasured), "The layer": self.conventions}
        return [
            ("Faults", [(str(f.law), f.told()) for f in self.broken if f.severity == "fault"]),
            ("Hazards", [(str(f.law), f.told()) for f in self.broken if f.severity == "hazard"]),
            *((title, [("", rows)] if rows else []) for title, rows in rest.items()),
        ]
