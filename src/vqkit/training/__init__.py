"""Recipes, the loop, and evaluation."""

from vqkit.training.config import RECIPES, Config, resolve
from vqkit.training.evaluate import Figures, atlas, decibels, evaluate, reconstruct
from vqkit.training.hardware import Hardware
from vqkit.training.loop import fit
from vqkit.training.metrics import Diverged, MetricsFile, Watcher, read_metrics
from vqkit.training.progress import progress_for
from vqkit.training.schedules import Constant, Cosine

__all__ = [
    "RECIPES",
    "Config",
    "Constant",
    "Cosine",
    "Diverged",
    "Figures",
    "Hardware",
    "MetricsFile",
    "Watcher",
    "atlas",
    "decibels",
    "evaluate",
    "fit",
    "progress_for",
    "read_metrics",
    "reconstruct",
    "resolve",
]
