"""What docs/jax.md shows runs, in order and in one process; the examples are run as a reader runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The model it trains has a fifth of the mean image's squared error (0.075) at most, and uses its codes."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/jax.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "documentation"}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), start=1):
        exec(compile(block, f"jax.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    found = re.search(r"squared error ([0-9.]+); (\d+) of 64 codes used, perplexity ([0-9.]+)", printed)
    assert found and float(found[1]) < 0.075 / 5 and int(found[2]) > 40 and float(found[3]) > 20
    assert "z holds NaN or infinity in 1 of 2 vectors (the first is vector 1" in printed


@pytest.mark.parametrize("name", ["flax", "equinox"])
def test_an_example_learns(name: str, tmp_path: Path) -> None:
    """On scikit-learn's digits, without a warning."""
    command = [sys.executable, "-W", "error", str(ROOT / f"examples/jax_{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    before, after = re.findall(r"MSE ([0-9.]+), perplexity ([0-9.]+) of 64", done.stdout)
    assert float(after[0]) < 0.075 / 5 < float(before[0])
    assert float(after[1]) > 20


@pytest.mark.parametrize("name", ["flax", "equinox"])
def test_an_example_is_short(name: str) -> None:
    lines = (ROOT / f"examples/jax_{name}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 60
