"""Recipes, the loop, and evaluation."""

from vqkit.training.config import RECIPES, Config, resolve
from vqkit.training.evaluate import Figures, atlas, decibels, evaluate, reconstruct
from vqkit.training.loop import Diverged, fit
from vqkit.training.progress import Bar, Lines, Progress, Silent, progress_for

__all__ = [
    "RECIPES",
    "Bar",
    "Config",
    "Diverged",
    "Figures",
    "Lines",
    "Progress",
    "Silent",
    "atlas",
    "decibels",
    "evaluate",
    "fit",
    "progress_for",
    "reconstruct",
    "resolve",
]
