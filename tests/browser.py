"""Pages as a browser has them: fixtures, which ``conftest.py`` gives to every test.

``open_page(path, width=360, dark=True)`` opens a file in headless Chromium and gives Playwright's page. A test fails
when a page said anything on the console, raised, or asked for anything but itself. Where there is no Chromium
(``chromium``, ``chromium-browser``, ``google-chrome`` or the path in VQKIT_CHROMIUM) tests are skipped, and fail where
CI is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.absent import absent

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    named = os.environ.get("VQKIT_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")  # no longer: while it is open, Playwright's event loop is the thread's
def browser() -> Iterator[Browser]:
    path = executable()
    if path is None:
        reason = f"no browser: none of {', '.join(NAMES)} is on PATH, and VQKIT_CHROMIUM is not set"
        absent(reason)
    from playwright.sync_api import sync_playwright  # here, as most tests need none

    with sync_playwright() as playwright:
        # Without a sandbox, which containers do not have; these pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Opener:
    """Opens pages and keeps what was wrong with them."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.faults: list[str] = []

    def __call__(
        self, path: Path, width: int = 1200, dark: bool = False, calm: bool = False, scripts: bool = True
    ) -> Page:
        """``calm`` asks for reduced motion; height 900, and a touch screen beside the mouse."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if calm else "no-preference",
            java_script_enabled=scripts,
            has_touch=True,
        )
        self.contexts.append(context)
        page, address = context.new_page(), path.resolve().as_uri()

        def requested(request: Request) -> None:
            if request.url != address:
                self.faults.append(f"requested {request.url}")

        page.on("request", requested)
        page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"raised {error}"))
        page.goto(address)
        return page


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    opener = Opener(browser)
    yield opener
    for context in opener.contexts:
        context.close()
    assert opener.faults == []
