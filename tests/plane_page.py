"""The page of the plane alone; ``python -m tests.plane_page`` draws ``plane.svg`` anew.

That is to be done when the first state or what the script draws has changed: the drawing is the script's first frame.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from vqkit.gradients.explain import plane as plane_part
from vqkit.gradients.explain.page import prose
from vqkit.pages import Html, Section, page


def whole_page(extra: str = "") -> str:
    part = plane_part.plane(lambda text: None)
    section = Section(part.title, [prose(part), Html(extra)])
    return page("t", [section], "s", Html(""), script=plane_part.SCRIPT, style=plane_part.STYLE)


if __name__ == "__main__":
    from tests.browser import executable

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        file.write_text(whole_page(), "utf-8")
        chromium = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page()
        tab.goto(file.as_uri())
        made = tab.evaluate("document.querySelector('.stage').outerHTML")
        chromium.close()
    made = re.sub(r' (role|tabindex|aria-[a-z]+)="[^"]*"', "", made)
    label = "Ten points, their targets, five codes with their cells, and what moves each, as arrows"
    made = made.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    Path(plane_part.__file__).with_name("plane.svg").write_text(made + "\n", "utf-8")
