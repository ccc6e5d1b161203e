"""What the commands do, as functions: a run is a directory that ``train`` leaves and the others read."""

from vqkit.runs.summary import report_runs
from vqkit.runs.train import Plan, Run, Slip, begin, carry_out, resume, train
from vqkit.runs.use import evaluate_run, info, reconstruct_image

__all__ = [
    "Plan",
    "Run",
    "Slip",
    "begin",
    "carry_out",
    "evaluate_run",
    "info",
    "reconstruct_image",
    "report_runs",
    "resume",
    "train",
]
