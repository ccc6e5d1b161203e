"""The house: imports point down, files are small, and nobody waits for, or gets, what they did not ask for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vqkit

SOURCE = Path(vqkit.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# From the roof down: a room imports from itself and from what stands after it.
ROOMS = (
    *("__main__", "cli", "keras", "gradients", "runs", "report", "codec", "training", "data", "pages", "models"),
    *("quantizers", "jax", "codebooks", "functional", "reference", "lazy"),
)
KNOW_NO_FILES = ROOMS[ROOMS.index("quantizers") :]
OF_FILES = {"fileinput", "glob", "io", "json", "os", "pathlib", "pickle", "shutil", "tempfile", "safetensors"}


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or anywhere in it; of the package, the module behind each name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, where the rest of the project writes vqkit."
            if node.module == "vqkit":
                yield from (_home(alias.name) for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vqkit":
            yield _home(node.attr)


def _home(name: str) -> str:
    return vqkit._HOME.get(name, "vqkit" if name.startswith("__") else f"vqkit.{name}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return  # the front door opens every room, each when it is asked for
    room = _room(path)
    assert room in ROOMS, f"{path} is in no room that this test knows: say above which others it stands"
    for module in _imports(path):
        package, _, rest = module.partition(".")
        if package == "vqkit" and rest:
            other = rest.split(".")[0]
            assert other in ROOMS, f"{path} imports {module}, which is in no room"
            assert ROOMS.index(other) >= ROOMS.index(room), f"{path} imports {module}: that arrow points up"
        if room in KNOW_NO_FILES:
            assert package not in OF_FILES, f"{path} imports {module}, but {room} does not know that files exist"


def test_the_rule_sees_an_arrow_that_points_up(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    inside = "def f():\n    from vqkit import train"
    for line in (inside, "import vqkit\nvqkit.train", "import vqkit.runs", "from vqkit import runs"):
        file.write_text(line)
        assert "vqkit.runs" in set(_imports(file)), line


def test_reference_imports_numpy_alone() -> None:
    assert set(_imports(SOURCE / "reference.py")) == {"__future__", "numpy"}


def test_files_are_short() -> None:
    """No file over 400 lines; of lines of code, without blanks, comments and docstrings, a budget for each part.

    Counted apart, so that none hides the growth of another, is what nothing else imports: of gradients/ the parts
    audit/, which knows some fifty faults, and explain/, a document that measures itself; the other frameworks.
    """
    texts = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in FILES}
    scripts = {path.name: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.js")}
    assert {n: len(t.splitlines()) for n, t in (texts | scripts).items() if len(t.splitlines()) > 400} == {}
    budgets = {"gradients/audit": 1350, "gradients/explain": 1100, "keras": 1030, "jax": 470, "": 5300}
    lines = dict.fromkeys(budgets, 0)
    for name, text in texts.items():
        lines[next(part for part in budgets if name.startswith(part))] += _lines_of_code(text)
    assert {part: count for part, count in lines.items() if count >= budgets[part]} == {} and lines[""] > 4000, lines


def test_nothing_but_its_command_imports_the_explanation() -> None:
    inside = SOURCE / "gradients" / "explain"
    for path in FILES:
        if inside not in path.parents:
            found = {module for module in _imports(path) if module.startswith("vqkit.gradients.explain")}
            assert found <= ({"vqkit.gradients.explain.page"} if path.name == "cli.py" else set()), path


def _lines_of_code(text: str) -> int:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return len(ast.unparse(tree).splitlines())


def _python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout.strip()


def test_importing_the_package_imports_no_framework() -> None:
    frameworks = "{'torch', 'jax', 'tensorflow', 'keras', 'numpy'}"
    assert _python(f"import sys, vqkit; print({frameworks} & set(sys.modules))") == "set()"


def test_without_torch_the_extra_is_named() -> None:
    """The slots' objects need no framework; Keras and JAX use them too."""
    code = "import sys; sys.modules['torch'] = None\nimport vqkit\nvqkit.EMA, vqkit.RotationTrick, vqkit.Given\n"
    code += "try: vqkit.Usage\nexcept ImportError as e: print(e)"
    assert _python(code) == "vqkit.Usage needs torch: pip install 'vqkit[torch]'"


@pytest.mark.parametrize("missing", ["torch", "skimage", "PIL", "rich"])
def test_without_what_training_needs_the_extra_is_named(missing: str) -> None:
    hide = f"import sys, vqkit; sys.modules[{missing!r}] = None"
    assert (
        _python(f"{hide}\ntry: vqkit.train\nexcept ImportError as e: print(e)")
        == f"vqkit.train needs {missing}: pip install 'vqkit[train]'"
    )


def test_every_name_is_there() -> None:
    for name in vqkit.__all__:
        assert getattr(vqkit, name) is not None
    assert set(vqkit.__all__) == set(dir(vqkit))
    with pytest.raises(AttributeError, match="no attribute 'VectorQuantiser'"):
        vqkit.VectorQuantiser  # noqa: B018


def test_the_quantizer_adds_at_most_a_tenth_of_a_second_to_torch() -> None:
    """In processor time, which is the clock's on an idle machine, and the least of several processes."""
    clock = "time.process_time()"
    code = f"import time, torch; t = {clock}; from vqkit import VectorQuantizer; print({clock} - t)"
    times: list[float] = []
    while len(times) < 6 and (not times or min(times) > 0.1):
        times.append(float(_python(code)))
    assert min(times) <= 0.1, times
