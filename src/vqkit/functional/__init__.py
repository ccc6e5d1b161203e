"""Pure functions on ``(..., dim)`` tensors: search, estimators, losses, statistics, k-means."""

from vqkit.functional.search import nearest_codes, squared_distances_to

__all__ = ["nearest_codes", "squared_distances_to"]
