"""Without Keras or TensorFlow the message says what to install; of a file without its class, what to import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import vqkit.keras

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
IMPORTED = "import vqkit.keras"
CONVERTED = "from vqkit.cli import run; sys.exit(run(['convert', 'run', '--to', 'keras', 'out.keras']))"


@pytest.mark.parametrize("missing", ["keras", "tensorflow"])
@pytest.mark.parametrize("code, start", [(IMPORTED, "ImportError"), (CONVERTED, "vqkit")], ids=["import", "convert"])
def test_what_to_install(missing: str, code: str, start: str) -> None:
    command = [sys.executable, "-c", HIDDEN.format(name=missing) + code]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"{start}: vqkit.keras needs {missing}: pip install 'vqkit[tensorflow]', or 'vqkit[keras]' beside a backend of "
        "Keras that is there already (KERAS_BACKEND=jax or torch names it)."
    )


OPENED = """
import re, sys, keras
for file in sys.argv[1:]:
    try:
        keras.saving.load_model(file)
    except Exception as error:
        print(re.findall(r"Could not locate class .\\w+.", str(error))[-1])
"""


def test_the_document_has_what_keras_says_without_our_classes(tmp_path: Path) -> None:
    """In a process of its own; that with ``import vqkit.keras`` it loads is what the document itself runs."""
    text = (Path(__file__).parent.parent.parent / "docs" / "keras.md").read_text(encoding="utf-8")
    told = re.findall(r"Could not locate class '\w+'", text)
    assert len(told) == 2 and "add `import vqkit.keras`" in text
    ours = vqkit.keras.VQVAE(keras.layers.Dense(4), vqkit.keras.VectorQuantizer(8), keras.layers.Dense(3))
    ours(keras.ops.ones((2, 3)))
    ours.save(tmp_path / "ours.keras")
    keras.Sequential([keras.Input((4,)), vqkit.keras.VectorQuantizer(8)]).save(tmp_path / "own.keras")
    command = [sys.executable, "-c", OPENED, str(tmp_path / "ours.keras"), str(tmp_path / "own.keras")]
    environment = os.environ | {"KERAS_BACKEND": "numpy"}  # the quickest to import; the message is Keras's on all
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told
