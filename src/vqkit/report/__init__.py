"""A run as one self-contained page."""

from vqkit.report.comparisons import Comparison
from vqkit.report.write import RunSummary, render, write_report

__all__ = ["Comparison", "RunSummary", "render", "write_report"]
