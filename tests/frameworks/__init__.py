"""One contract for every framework, each in a process of its own.

    python -m pytest tests/frameworks --framework jax

runs in one process what belongs to one framework: the contract (``test_contract.py``, ``test_learning.py`` and
``test_training.py``) on its adapter, its own tests (``test_jax_*.py``), and with ``src/vqkit/jax`` the doctests of its
sources. ``python -m pytest`` runs them all from ``tests/test_frameworks.py``, and imports no framework but PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Process:
    """``owns`` are first words of file names (after ``test_``) that are run here; a file of no owner runs everywhere.

    ``needs`` must be installed, ``foreign`` must not be imported by anything run here. ``warnings`` are filters of
    what third parties warn of.
    """

    adapter: str
    owns: tuple[str, ...]
    needs: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


# A JAX that has two devices on one CPU, which what is sharded needs.
_TWO = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
# Keras 3.15 and NumPy 2: a Keras variable and a PyTorch tensor become arrays in a way that NumPy deprecates.
_OF_KERAS = ("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",)
_KERAS = "tests.frameworks.keras_adapter"
_JAX = "tests.frameworks.jax_adapter"

# The slowest to import come first, since two run at a time.
PROCESSES = {
    "keras-tensorflow": Process(
        *(_KERAS, ("keras", "tensorflow"), ("keras", "tensorflow"), ("torch",), ("src/vqkit/keras",)),
        {"KERAS_BACKEND": "tensorflow"},
        _OF_KERAS,
    ),
    "keras-torch": Process(
        _KERAS, ("keras",), ("keras", "torch"), environment={"KERAS_BACKEND": "torch"}, warnings=_OF_KERAS
    ),
    "keras-jax": Process(
        *(_KERAS, ("keras",), ("keras", "jax"), ("torch",)),
        environment={"KERAS_BACKEND": "jax", **_TWO},
        warnings=_OF_KERAS,
    ),
    "jax": Process(_JAX, ("jax",), ("jax",), ("torch", "tensorflow", "keras"), ("src/vqkit/jax",), _TWO),
    "jax-x64": Process(
        _JAX, (), ("jax",), ("torch", "tensorflow", "keras"), environment={"JAX_ENABLE_X64": "1", **_TWO}
    ),
    "torch": Process("tests.frameworks.torch_adapter", ("torch",), ("torch",), ("jax", "tensorflow", "keras")),
}
OWNED = {word for process in PROCESSES.values() for word in process.owns}
