"""The examples are run as a reader runs them, and held to what they promise."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
MINIMAL = EXAMPLES / "minimal.py"
NOTEBOOK = EXAMPLES / "vqvae.ipynb"


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: not blank, no comment, not of a docstring."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def definitions(source: str) -> dict[str, str]:
    """Each top-level class and function, by name."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name: ast.unparse(node) for node in ast.parse(source).body if isinstance(node, kinds)}


def notebook_code() -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_minimal_learns(tmp_path: Path) -> None:
    """From another directory: its error is at most a quarter of the mean image's, with at least ten codes in use."""
    done = subprocess.run(
        [sys.executable, str(MINIMAL), "--png", "digits.png"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    error, baseline, perplexity = (float(x) for x in re.findall(r": +([0-9.]+)", done.stdout))
    assert 0.05 < baseline < 0.1
    assert error < baseline / 4
    assert 10 < perplexity <= 64
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_minimal_is_minimal() -> None:
    """At most 85 lines of code, blank lines, comments and docstrings not counted; plain PyTorch."""
    source = MINIMAL.read_text(encoding="utf-8")
    assert len(code_lines(source)) <= 85
    assert "vqkit" not in source


@pytest.mark.parametrize("name", ["VectorQuantizer", "VQVAE", "digits", "train", "evaluate"])
def test_the_notebook_explains_the_file_as_it_is(name: str) -> None:
    assert definitions(notebook_code())[name] == definitions(MINIMAL.read_text(encoding="utf-8"))[name]


def test_the_committed_notebook_holds_its_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    code = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own cells assert what they print; an error in any of them fails here with the cell and the traceback."""
    # The kernel is this Python, whatever others the user has registered, and their start-up files stay out of it.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    which = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    notebook.cells.insert(0, which)
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300)
    asyncio.run(client.async_execute(cwd=str(EXAMPLES)))
    assert which.outputs[0].text.strip() == sys.executable
