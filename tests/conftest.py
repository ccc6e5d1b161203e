"""Fixtures that several test files use."""

from tests.browser import browser, open_page

__all__ = ["browser", "open_page"]
