"""How evenly the codes are used, each of them drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vqkit.pages import Linear, Log, Section, bar_chart, folded, headline, number, tag

if TYPE_CHECKING:
    from jaxtyping import Integer

MOST_LISTED = 2000  # codes never chosen, by index


def usage(counts: Integer[np.ndarray, " K"]) -> Section:
    """Shares p_k = n_k / N by rank and by index; entropy H = -sum p_k log2 p_k; perplexity 2^H."""
    size, share = len(counts), counts / counts.sum()
    entropy = float(-(share[share > 0] * np.log2(share[share > 0])).sum()) + 0.0  # never minus zero
    dead = np.flatnonzero(counts == 0)
    figures = {"codes used": size - len(dead), "never chosen": len(dead), "perplexity": 2**entropy}
    shares = {"entropy (bits)": entropy, "largest share (%)": 100 * float(share.max())}
    level, unit = ("if all were even", 100 / size), "% of all vectors"
    scale: Linear | Log = Linear()
    if share.max() > 10 / size:  # Equal steps would press all the others against the axis.
        scale, unit = Log(), unit + ", log scale"
    ranked, rank = 100 * np.sort(share)[::-1], "codes, most used first"
    by_rank = bar_chart(ranked, level, scale, title="By rank", unit=unit, x_label=rank)
    by_index = bar_chart(100 * share, level, scale, title="By index", unit=unit, x_label="code")
    content = [headline({**figures, **shares}), tag("div", {"class": "charts"}, by_rank, by_index)]
    if len(dead):
        listed = ", ".join(map(str, dead[:MOST_LISTED])) + (", ..." if len(dead) > MOST_LISTED else "")
        content.append(folded(f"Codes never chosen: {len(dead):,}", tag("p", None, listed)))
    bits = math.log2(size)
    meaning = (
        f"The {size:,} codes carry as much as {number(2**entropy)} codes in even use would: {entropy:.2f} of "
        f"the {bits:.2f} bits that an index could hold, so coding each index by its frequency alone would "
        f"save {max(0.0, 1 - entropy / bits) if bits else 0:.0%}."
    )
    return Section("Use of the codebook", content, meaning)
