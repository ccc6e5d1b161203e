"""What only a process of its own can show: start-up, signals, terminals, and that two of them agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import ENVIRONMENT, TINY, call, process, write_images
from vqkit.models import VQVAE


def test_help_answers_within_a_second() -> None:
    """The least of several processes: a busy machine makes any one of them slow, never fast."""
    times: list[float] = []
    while len(times) < 8 and (not times or min(times) > 1):
        began = time.monotonic()
        assert process("--help").code == 0
        times.append(time.monotonic() - began)
    assert min(times) <= 1, times


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("--recipe",), ()])
def test_what_needs_no_framework_loads_none(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys, atexit; from vqkit.__main__ import main\n"
        "atexit.register(lambda: print('loaded', {'torch', 'numpy', 'PIL', 'skimage'} & set(sys.modules)))\nmain()"
    )
    assert process(*arguments, code=code).out.endswith("loaded set()\n")


def test_two_processes_train_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With names that no Latin encoding has, no file opened in the encoding of the place, and lines for a log."""
    folder, runs = write_images(tmp_path / "写真"), [tmp_path / "运行" / str(i) for i in range(2)]
    code = (
        "import warnings; warnings.simplefilter('ignore', EncodingWarning)  # of others\n"
        "warnings.filterwarnings('error', category=EncodingWarning, module='vqkit')\n"
        "from vqkit.__main__ import main; main()"
    )
    places = {"PYTHONIOENCODING": "ascii", "PYTHONWARNDEFAULTENCODING": "1"}
    said = process("train", folder, "--out", runs[0], *TINY, code=code, **places)
    assert said.code == 0 and said.err == ""
    first, step, *_ = said.out.splitlines()
    assert first.startswith("training on ") and "??: 3 RGB images" in first
    assert step.startswith("step 3/3  loss ") and "perplexity" in step and "images/s" in step and "s left" in step
    assert "\r" not in said.out and "\x1b" not in said.out
    assert process("train", folder, "--out", runs[1], *TINY).code == 0
    assert call(capsys, "train", folder, "--out", tmp_path / "other", *TINY, "seed=1").code == 0
    weights = [(run / "model.safetensors").read_bytes() for run in (*runs, tmp_path / "other")]
    assert weights[0] == weights[1] != weights[2]


def test_ctrl_c_keeps_what_was_learnt(tmp_path: Path) -> None:
    folder, run = write_images(tmp_path / "images"), tmp_path / "run"
    arguments = ["train", folder, "--out", run, *TINY, "log_every=1", "--steps", "1000000"]
    with subprocess.Popen(
        [sys.executable, "-m", "vqkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as training:
        metrics, until = run / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=60)
    steps = [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert training.returncode == 130
    said = f"vqkit: interrupted after step {steps[-1]} of 1000000, which is saved; go on with:"
    assert err == f"{said} vqkit train --resume {run}\n"
    assert steps == list(range(1, len(steps) + 1)) and "report" not in out
    assert sorted(os.listdir(run)) == [".lock", "checkpoints", "config.json", "metrics.jsonl", "model.safetensors"]
    assert VQVAE.from_pretrained(run).quantizer.codebook_size == 16


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are of Unix")
    ours, theirs = pty.openpty()
    arguments = ["train", write_images(tmp_path / "images"), "--out", tmp_path / "run", *TINY, "log_every=1"]
    with subprocess.Popen(
        [sys.executable, "-m", "vqkit", *map(str, arguments)],
        stdout=theirs,
        stderr=theirs,
        env={**ENVIRONMENT, "COLUMNS": "100", "TERM": "xterm"},
    ) as training:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 1 << 16):
                shown += part
        except OSError:  # so Linux says that the other side has closed
            pass
    os.close(ours)
    text = shown.decode()
    assert training.returncode == 0 and "━" in text and "\x1b[" in text
    last = text[text.rindex("step ") :]
    for word in ("3/3", "loss", "perplexity", "images/s", "0:00:00", "left", "report.html"):
        assert word in last, last
