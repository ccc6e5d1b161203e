"""``framework`` is the adapter of this process; ``form``, ``dtype``, ``half`` and ``revived`` run over what it has."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.frameworks import PROCESSES
from tests.frameworks.adapter import Adapter

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of what is compiled, one dtype is enough: compiling is most of the time that these tests take."""
    wanted, adapter = set(metafunc.fixturenames), _adapter(metafunc.config)
    if {"form", "dtype"} <= wanted:
        pairs = [(f, d) for f in adapter.forms for d in adapter.dtypes if f == "eager" or d == adapter.dtypes[0]]
        metafunc.parametrize(("form", "dtype"), pairs)
        wanted -= {"form", "dtype"}
    for name in sorted(wanted & set(AXES)):
        metafunc.parametrize(name, getattr(adapter, AXES[name]))
