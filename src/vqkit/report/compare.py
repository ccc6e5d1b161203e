"""Two runs on one page: which is better by what, where their settings differ, what each makes of the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vqkit.pages import Html, Section, Value, folded, key_values, number, tag
from vqkit.report.comparisons import comparisons
from vqkit.report.curves import curves
from vqkit.report.usage import usage
from vqkit.report.write import Part, RunSummary, assemble, headlines, settings, write_page

# Of any other figure, seconds or parameters, neither more nor less is better in itself.
HIGHER = ("PSNR", "PSNR on training images", "SSIM", "codes used", "perplexity")
LOWER = ("MSE", "NMSE", "bits per pixel")


def write_comparison(path: str | os.PathLike[str], first: RunSummary, second: RunSummary) -> None:
    """Write two runs side by side, as `write_report` writes one."""
    write_page(path, render_comparison(first, second))


def render_comparison(first: RunSummary, second: RunSummary) -> str:
    """Two runs side by side as one self-contained HTML document of less than 3 MB."""
    names = first.name or "first", second.name or "second"
    if names[0] == names[1]:
        names = f"{names[0]} (first)", f"{names[1]} (second)"

    def both(field: str) -> dict[str, Any]:
        return {name: getattr(run, field) for name, run in zip(names, (first, second), strict=True)}

    subtitle = " ".join(dict.fromkeys((first.subtitle, second.subtitle)))
    if first.provenance.get("data") != second.provenance.get("data"):
        subtitle += " The two were trained on different data: what one held out, the other may have seen."
    parts: list[Part] = [
        _configurations(both("config")),
        lambda room: comparisons(both("comparisons"), room),
        curves(both("metrics")),
        usage(both("counts")),
        Section("All numbers", [_figures("All numbers", both("figures"))]),
        Section("How these were made", [key_values(both("provenance"), "Origin")]),
    ]
    top = _figures("Figures", {name: headlines(figures) for name, figures in both("figures").items()})
    return assemble(" and ".join(names), parts, subtitle, top)


def _configurations(configs: Mapping[str, Mapping[str, object]]) -> Section:
    flat = {name: settings(config) for name, config in configs.items()}
    one, two = flat.values()
    same = {name: text for name, text in one.items() if two.get(name) == text}
    apart = {run: {name: text for name, text in of.items() if name not in same} for run, of in flat.items()}
    fold = folded(f"The same in both: {len(same)} settings", key_values({"": same}, "Settings that are the same"))
    if not any(apart.values()):
        return Section("Settings that differ", [fold], "None: the two have the same configuration.")
    return Section("Settings that differ", [key_values(apart, "Settings that differ"), fold])


def _figures(title: str, figures: Mapping[str, Mapping[str, Value]]) -> Html:
    """Figures beside each other; of two that the page shows as different the better is marked."""
    cells: dict[str, dict[str, Value]] = {run: {} for run in figures}
    for name in dict.fromkeys(name for of in figures.values() for name in of):
        base = name.partition(" (")[0]
        wanted = "higher" if base in HIGHER else "lower" if base in LOWER else ""
        label = tag("span", None, name, " ", tag("small", None, f"{wanted} is better")) if wanted else name
        values = {run: of[name] for run, of in figures.items() if name in of}
        numbers = [v for v in values.values() if not isinstance(v, str) and v == v]
        apart = wanted and len({number(v) for v in numbers}) == 2
        best = (max(numbers) if wanted == "higher" else min(numbers)) if apart else None
        for run, value in values.items():
            marked = tag("span", None, tag("b", None, number(value)), " ", tag("small", None, "better"))
            cells[run][label] = marked if value == best else value
    return key_values(cells, title)
