"""Pure functions on ``(..., dim)`` tensors: search, estimators, losses, statistics, k-means."""

from typing import TYPE_CHECKING

from vqkit import lazy

if TYPE_CHECKING:
    from vqkit.functional.search import nearest_codes as nearest_codes
    from vqkit.functional.search import squared_distances_to as squared_distances_to

__getattr__, __all__ = lazy.names(__name__, {"vqkit.functional.search": ("nearest_codes", "squared_distances_to")})
