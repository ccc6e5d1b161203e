"""``framework`` is the adapter of this process; ``form``, ``dtype``, ``half`` and ``revived`` run over what it has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from tests.frameworks import PROCESSES
from tests.frameworks.adapter import Adapter, Quantizer

AXES = {"form": "forms", "dtype": "dtypes", "half": "halves", "revived": "revives"}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--framework") == "keras-tensorflow":
        import tensorflow as tf

        # Two replicas on one CPU; it must be said before anything is computed.
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def _adapter(config: pytest.Config) -> Adapter:
    return import_module(PROCESSES[config.getoption("--framework")].adapter)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def framework(pytestconfig: pytest.Config) -> Adapter:
    return _adapter(pytestconfig)


@pytest.fixture(scope="session")
def held(framework: Adapter) -> Callable[..., Quantizer]:
    """``held(codes, **slots)`` is a quantizer with these codes, as ``make`` gives it, but that its usage is not zero.

    Of one shape, dtype and slots there is one, so that what is compiled for one test serves all.
    """
    made: dict[tuple, Quantizer] = {}

    def hold(codes: np.ndarray, **slots: Any) -> Quantizer:
        key = codes.shape, codes.dtype, repr(slots)
        if key not in made:
            made[key] = framework.make(codes, dtype=codes.dtype.name, **slots)
        made[key].set_codebook(codes)
        return made[key]

    return hold


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of what is compiled, one dtype and one update are enough: compiling is most of the time of these tests."""
    wanted, adapter = set(metafunc.fixturenames), _adapter(metafunc.config)
    if {"form", "dtype"} <= wanted:
        pairs = [(f, d) for f in adapter.forms for d in adapter.dtypes if f == "eager" or d == adapter.dtypes[0]]
        metafunc.parametrize(("form", "dtype"), pairs)
        wanted -= {"form", "dtype"}
    if {"form", "revived"} <= wanted:
        pairs = [(f, r) for f in adapter.forms for r in adapter.revives if f == "eager" or r == "ema"]
        metafunc.parametrize(("form", "revived"), pairs)
        wanted -= {"form", "revived"}
    for name in sorted(wanted & set(AXES)):
        metafunc.parametrize(name, getattr(adapter, AXES[name]))
