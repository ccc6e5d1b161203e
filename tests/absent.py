"""What a test does where something is missing that it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """A failure in CI, which ``.ci/run`` tells by the variable CI; elsewhere a skip that shows its reason."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
