"""A run, or two side by side, as one self-contained page."""

from vqkit.report.compare import render_comparison, write_comparison
from vqkit.report.comparisons import Comparison
from vqkit.report.write import RunSummary, render, write_report

__all__ = ["Comparison", "RunSummary", "render", "render_comparison", "write_comparison", "write_report"]
