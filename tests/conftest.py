"""Fixtures that several test files use."""

from tests.browser import browser, open_page
from tests.framework_processes import processes

__all__ = ["browser", "open_page", "processes"]
