"""A run as one self-contained page."""

from vqkit.report.summary import Comparison, RunSummary
from vqkit.report.write import render, write_report

__all__ = ["Comparison", "RunSummary", "render", "write_report"]
