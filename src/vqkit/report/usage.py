"""How evenly the codes are used, of one run or of several in one chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vqkit.pages import Log, Section, Series, Value, folded, key_values, line_chart, tag

if TYPE_CHECKING:
    from jaxtyping import Integer

MOST_LISTED = 2000  # codes never chosen, by index
MOST_POINTS = 500  # of a line


def usage(runs: Mapping[str, Integer[np.ndarray, " K"]]) -> Section:
    """Shares p_k = n_k / N by rank; entropy H = -sum p_k log2 p_k; perplexity 2^H."""
    figures: dict[str, dict[str, Value]] = {}
    lines, lists, several = [], [], len(runs) > 1
    for run, counts in runs.items():
        size, share = len(counts), np.sort(counts[counts > 0])[::-1] / counts.sum()
        entropy, bits = float(-(share * np.log2(share)).sum()) + 0.0, math.log2(size)  # never minus zero
        figures[run] = {
            "codes": size,
            "codes used": len(share),
            "largest share (%)": 100 * float(share[0]),
            "perplexity": 2**entropy,
            "entropy (bits)": entropy,
            "redundancy (%)": max(0.0, 100 * (1 - entropy / bits)) if bits else 0,
        }
        at = np.unique(np.linspace(0, len(share) - 1, MOST_POINTS).round().astype(int))
        x, y, note = (at + 1).tolist(), (100 * share[at]).tolist(), f"{len(share):,} of {size:,}"
        lines.append(Series(run if several else "codes", x, y, note))
        if dead := np.flatnonzero(counts == 0).tolist():
            listed = ", ".join(map(str, dead[:MOST_LISTED])) + (", ..." if len(dead) > MOST_LISTED else "")
            lists.append(folded(f"Codes never chosen{f' by {run}' * several}: {len(dead):,}", tag("p", None, listed)))
    if len(sizes := {len(counts) for counts in runs.values()}) == 1:
        lines.append(Series("if all were even", [1, *sizes], [100 / size] * 2))
    words = {"title": "By rank", "x_label": "codes, most used first", "unit": "% of all vectors, log scale"}
    both = tag("div", {"class": "charts"}, line_chart(lines, Log(), **words), key_values(figures, "Use of the codes"))
    lead = "Perplexity: so many codes in even use would carry as much. Redundancy: what coding by frequency would save."
    return Section("Use of the codebook", [both, *lists], lead)
