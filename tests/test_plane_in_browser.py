"""The plane in headless Chromium: every way to change it, at several widths, in the dark and without scripts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from tests.plane_page import whole_page
from vqkit.gradients.explain import plane as plane_part

PATHS = ("here", "cells", "axes", "links", "targets", "trail", "miss", "commitment", "reconstruction", "codebook")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plane") / "page.html"
    path.write_text(whole_page(), "utf-8")
    return path


def drawing(page: Page) -> dict[str, str]:
    return {name: page.get_attribute(f".stage .{name}", "d") for name in PATHS}


def shown(page: Page, name: str) -> str:
    return page.locator(f"[data-is={name}]").inner_text()


def numbers(d: str) -> np.ndarray:
    return np.array(re.findall(r"-?[\d.]+", d), float)


def places(page: Page, kind: str) -> np.ndarray:
    """Where marks lie in the plane, by their transforms: (N, 2) or (K, 2)."""
    found = page.locator(f".{kind[:-1]}").evaluate_all("all => all.map(e => e.getAttribute('transform'))")
    return (np.array([numbers(text) for text in found]) - 200) / [125, -125]


def press(page: Page, button: str, times: int = 1) -> None:
    """As a click that does not wait for the pointer to get there."""
    page.locator(f"button[name={button}]").evaluate("(button, n) => { while (n--) button.click(); }", times)


MARKS = {"points": (2, "Point 3"), "codes": (1, "Code 2")}


def state_of(page: Page) -> dict[str, Any]:
    """The first state under the page's switches."""
    value = {name: page.locator(f"input[name={name}]:checked").input_value() for name in ("estimator", "update")}
    return {**plane_part.first_state(), **value, "beta": float(page.locator("input[name=beta]").input_value())}


def test_the_drawing_without_scripts_is_the_first_frame(open_page, path: Path) -> None:
    """``plane.svg`` was made by the script: it must still be what the script draws."""
    still, live = open_page(path, scripts=False), open_page(path)
    for name in PATHS:
        a, b = (page.locator(f".stage .{name}").get_attribute("d") for page in (still, live))
        assert re.sub(r"-?[\d.]+", "0", a) == re.sub(r"-?[\d.]+", "0", b), name
        np.testing.assert_allclose(numbers(a), numbers(b), atol=0.11, err_msg=name)
    assert still.locator(".handle").count() == live.locator(".handle").count() == 15
    assert still.locator("noscript p").is_visible()
    assert not still.locator(".plane form").is_visible()
    assert not still.locator(".plane dl").is_visible()
    assert live.locator(".plane form").is_visible()


def test_a_step_is_that_of_the_arithmetic(open_page, path: Path) -> None:
    page = open_page(path)
    page.locator("input[name=beta]").fill("0.7")
    for estimator, update in itertools.product(
        ("straight-through", "rotation trick", "none"), ("codebook loss", "EMA", "frozen")
    ):
        page.get_by_label(estimator, exact=True).check()
        page.get_by_label(update, exact=True).check()
        press(page, "reset")
        state = state_of(page)
        assert (state["estimator"], state["update"], state["beta"]) == (estimator, update, 0.7)
        for step in (1, 2):
            press(page, "step")
            before, (_, _, state) = state, plane_part.moment(state)
            facts, _, _ = plane_part.moment(state)
            assert shown(page, "step") == str(step)
            for name in ("reconstruction", "codebook", "commitment"):
                assert float(shown(page, name).split(" ")[0]) == pytest.approx(facts[name], abs=5.1e-5)
            assert float(shown(page, "perplexity").split(",")[0]) == pytest.approx(facts["perplexity"], abs=0.0051)
            assert ("not used" in shown(page, "codebook")) == (update != "codebook loss")
            moved = [np.linalg.norm(np.subtract(state[k], before[k]), axis=1).mean() for k in ("points", "codes")]
            found = [float(x) for x in re.findall(r"[\d.]+", shown(page, "moved"))]
            assert found == pytest.approx(moved, abs=5.1e-5)
            for kind in ("points", "codes"):
                inside = np.clip(state[kind], -1.6, 1.6)
                np.testing.assert_allclose(places(page, kind), inside, atol=0.051 / 125)


def test_arrows_are_ten_and_three_steps_long(open_page, path: Path) -> None:
    page = open_page(path)
    page.locator("input[name=beta]").fill("2")
    state = state_of(page)
    _, steps, _ = plane_part.moment(state)
    for name, kind, times in (("reconstruction", "points", 10), ("commitment", "points", 10), ("codebook", "codes", 3)):
        arrows = drawing(page)[name].split("Z")[:-1]
        long = [i for i, step in enumerate(steps[name]) if np.hypot(*step) * times * 125 >= 3]
        assert len(arrows) == len(long) > 2
        for arrow, i in zip(arrows, long, strict=True):
            start, tip = numbers(arrow).reshape(-1, 2)[[0, 3]]
            np.testing.assert_allclose((tip - start) / [125, -125], steps[name][i] * times, atol=0.11 / 125)
            centre = np.array(state[kind][i]) * [125, -125] + 200
            np.testing.assert_allclose(np.hypot(*(start - centre)), 8, atol=0.11)  # the rim of its mark


def _centre(mark: Locator) -> tuple[float, float]:
    box = mark.locator(".hit").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def _drag(page: Page, kind: str, i: int, dx: float, dy: float, finger: bool = False) -> None:
    """By (dx, dy) of the plane."""
    x, y = _centre(page.locator(f".{kind[:-1]}").nth(i))
    unit = page.locator(".stage").bounding_box()["width"] / 400 * 125
    way = np.array([dx, -dy]) * unit
    if finger:
        client = page.context.new_cdp_session(page)
        for event, share in (("touchStart", 0), ("touchMove", 0.5), ("touchMove", 1), ("touchEnd", None)):
            points = [] if share is None else [{"x": x + way[0] * share, "y": y + way[1] * share}]
            client.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": points})
    else:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + way[0], y + way[1], steps=3)
        page.mouse.up()
        page.mouse.move(x, y)  # released: this moves nothing


@pytest.mark.parametrize("finger", [False, True], ids=["mouse", "touch"])
def test_a_point_and_a_code_are_dragged(open_page, path: Path, finger: bool) -> None:
    page = open_page(path, 360 if finger else 1200)
    page.locator(".stage").scroll_into_view_if_needed()
    top = page.evaluate("scrollY")
    for kind, (i, name) in MARKS.items():
        before, at, said = drawing(page), places(page, kind)[i], page.locator("dl").inner_text()
        _drag(page, kind, i, 0.4, -0.3, finger)
        np.testing.assert_allclose(places(page, kind)[i], at + np.array([0.4, -0.3]), atol=0.02)
        changed = {name for name, d in drawing(page).items() if d != before[name]}
        own = {"miss", "commitment", "reconstruction"} if kind == "points" else {"cells", "here"}
        assert {"links", *own} <= changed
        assert page.locator(".said").inner_text().startswith(f"{name} at")
        assert page.locator("dl").inner_text() != said
        assert page.locator(".selected").count() == 1
    assert page.evaluate("scrollY") == top
    _drag(page, "points", 8, 9, 0)
    assert places(page, "points")[8, 0] == 1.6  # not out of the picture


def test_of_two_that_overlap_the_nearer_is_dragged(open_page, path: Path) -> None:
    page = open_page(path)
    page.locator(".stage").scroll_into_view_if_needed()
    at = places(page, "points")
    _drag(page, "points", 3, *(at[0] + [0.2, 0] - at[3]))
    assert 0.2 * 125 < 18 / 0.52  # the circles for a finger do overlap
    for i, j in ((0, 3), (3, 0)):
        before = places(page, "points")
        here, there = (np.array(_centre(page.locator(".point").nth(k))) for k in (i, j))
        page.mouse.move(*(0.52 * here + 0.48 * there))  # within the circles of both
        page.mouse.down()
        page.mouse.move(*(0.52 * here + 0.48 * there + 2))
        page.mouse.up()
        assert np.flatnonzero((places(page, "points") != before).any(1)).tolist() == [i]
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Point {i + 1}"


def test_what_is_held_stays_while_the_rest_moves(open_page, path: Path) -> None:
    page = open_page(path)
    page.locator(".stage").scroll_into_view_if_needed()
    page.mouse.move(*_centre(page.locator(".point").nth(4)))
    page.mouse.down()
    before = places(page, "points")
    press(page, "step", 5)
    assert np.flatnonzero((places(page, "points") == before).all(1)).tolist() == [4]
    page.mouse.up()
    press(page, "step")
    assert (places(page, "points")[4] != before[4]).any()


def test_the_sentence_of_a_point_says_its_steps(open_page, path: Path) -> None:
    page = open_page(path)
    state = state_of(page)
    facts, steps, _ = plane_part.moment(state)
    for i, (step, tied, way) in enumerate(
        zip(steps["reconstruction"], steps["commitment"], steps["to_code"], strict=True)
    ):
        page.locator(".point").nth(i).focus()
        said = page.locator(".said").inner_text()
        found = re.findall(r"code is (\d)|by ([\d.]+)|([\d.]+)°", said)
        code, pull, turn, pull_tied = (float("".join(groups)) for groups in found)
        angle = np.degrees(np.arccos(step @ way / np.linalg.norm(step) / np.linalg.norm(way)))
        assert code == facts["indices"][i] + 1
        assert turn == pytest.approx(angle, abs=0.501), said
        assert [pull, pull_tied] == pytest.approx([np.linalg.norm(step), np.linalg.norm(tied)], abs=0.000501), said
        assert said == page.locator(".point").nth(i).get_attribute("aria-valuetext")


def test_the_sentence_of_a_code_says_what_moves_it(open_page, path: Path) -> None:
    page = open_page(path)
    counts = list(map(int, plane_part.moment(state_of(page))[0]["counts"]))
    rules = {"codebook loss": "the codebook loss moves it", "EMA": "the average moves it", "frozen": "it is frozen"}
    for rule, what in rules.items():
        page.get_by_label(rule, exact=True).check()
        for i, count in enumerate(counts):
            page.locator(".code").nth(i).focus()
            to = "" if rule == "frozen" else " towards that point" if count == 1 else " towards their mean"
            owns = f"the nearest code of {count} point{'s' * (count > 1)}; {what}{to}."
            said = page.locator(".said").inner_text().partition(": ")[2]
            assert said == (owns if count else "no point is nearest to it, so nothing moves it.")
    assert {0, 1, 2} <= set(counts)


def test_each_switch_changes_what_it_names(open_page, path: Path) -> None:
    page = open_page(path)
    first = drawing(page)

    def changed() -> set[str]:
        return {name for name, d in drawing(page).items() if d != first[name]}

    page.get_by_label("rotation trick", exact=True).check()
    assert changed() == {"reconstruction"}
    page.get_by_label("none", exact=True).check()
    assert drawing(page)["reconstruction"] == ""
    assert changed() == {"reconstruction"}
    assert "does not reach it" in page.locator(".said").inner_text()
    page.get_by_label("straight-through", exact=True).check()
    assert changed() == set()
    page.get_by_label("EMA", exact=True).check()
    assert changed() == {"codebook"}
    page.get_by_label("frozen", exact=True).check()
    assert drawing(page)["codebook"] == ""
    page.get_by_label("codebook loss", exact=True).check()
    page.locator("input[name=beta]").fill("0")
    assert drawing(page)["commitment"] == ""
    assert changed() == {"commitment"}
    assert page.locator(".said").inner_text().endswith("; commitment does not.")
    assert shown(page, "commitment") == "0.0000"
    assert page.locator("output").inner_text() == "0.00"


@pytest.mark.parametrize("calm", [False, True])
def test_play_pause_and_reset(open_page, path: Path, calm: bool) -> None:
    page = open_page(path, calm=calm)
    page.clock.install(time=0)
    page.reload()
    page.clock.pause_at(3_600_000)  # from here time goes on only where the test says so
    first, state = drawing(page), page.locator("dl").inner_text()
    assert page.locator("dl").get_attribute("aria-live") == "polite"
    page.get_by_label("EMA", exact=True).check()
    press(page, "play")
    assert page.locator("dl").get_attribute("aria-live") == "off"
    page.clock.run_for(2400)
    assert shown(page, "step") == ("2" if calm else "20")
    press(page, "play")
    page.clock.run_for(5000)
    assert shown(page, "step") == ("2" if calm else "20")
    assert drawing(page)["trail"] != ""
    press(page, "reset")
    page.get_by_label("codebook loss", exact=True).check()
    assert drawing(page) == first
    assert page.locator("dl").inner_text() == state
    assert page.get_by_role("button", name="Play").is_visible()


def test_everything_works_by_keyboard(open_page, path: Path) -> None:
    page = open_page(path)
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.getAttribute('aria-label') || e.name || '')(document.activeElement)"))
    marks = [f"Code {i}" for i in range(1, 6)] + [f"Point {i}" for i in range(1, 11)]
    controls = ["step", "play", "reset", "estimator", "update", "beta"]
    assert [name for name in reached if name in marks + controls][:21] == controls + marks

    mark = page.locator(".point").nth(2)
    mark.focus()
    at, top = places(page, "points")[2], page.evaluate("scrollY")
    for key, way in (("ArrowRight", [1, 0]), ("ArrowUp", [0, 1]), ("ArrowLeft", [-1, 0]), ("ArrowDown", [0, -1])):
        for keys, by in ((key, 0.05), (f"Shift+{key}", 0.25)):
            page.keyboard.press(keys)
            at = at + by * np.array(way)
            np.testing.assert_allclose(places(page, "points")[2], at, atol=0.001)
    assert page.evaluate("scrollY") == top
    at_text = f"Point 3 at {at[0]:.2f}, {at[1]:.2f}".replace("-", "\N{MINUS SIGN}")
    assert mark.get_attribute("aria-valuetext").startswith(at_text)
    ring = mark.locator(".ring").evaluate("e => getComputedStyle(e).strokeWidth")
    assert ring == "2.5px"  # the focus is to be seen

    page.locator("button[name=step]").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert shown(page, "step") == "2"
    page.locator("input[value=straight-through]").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("rotation trick", exact=True).is_checked()
    page.keyboard.press("Enter")  # submits nothing
    page.locator("input[name=beta]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "0.30"
    assert shown(page, "step") == "2"


def test_what_leaves_the_picture_is_shown_at_its_edge(open_page, path: Path) -> None:
    page = open_page(path)
    page.get_by_label("frozen", exact=True).check()
    page.locator("input[name=beta]").fill("0")
    state = state_of(page)
    press(page, "step", 40)
    for _ in range(40):
        state = plane_part.moment(state)[2]
    outside = int((np.abs(state["points"]).max(1) > 1.6).sum())
    assert outside
    assert shown(page, "outside").startswith(f"{outside},")
    np.testing.assert_allclose(places(page, "points"), np.clip(state["points"], -1.6, 1.6), atol=0.051 / 125)


def test_it_fits(open_page, path: Path) -> None:
    page = open_page(path)
    for width in (1200, 881, 880, 560, 360):
        page.set_viewport_size({"width": width, "height": 900})
        press(page, "step", 7)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        parts = page.locator(".stage, .plane button, .plane label, .plane dl > div, .said, .key-of > li")
        found = parts.evaluate_all(
            "all => all.map(e => e.getBoundingClientRect()).map(r => [r.x, r.y, r.right, r.bottom])"
        )
        assert len(found) > 20
        for i, (left, top, right, bottom) in enumerate(found):
            assert left >= 0
            assert right <= width
            for x, y, far, low in found[:i]:  # no two overlap
                assert left >= far - 1 or x >= right - 1 or top >= low - 1 or y >= bottom - 1, (width, found[i])
    sizes = page.locator(".hit").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert min(sizes) >= 24  # what a finger needs, by WCAG 2.2


@pytest.mark.parametrize("width", [360, 520, 521, 881, 1200])
def test_numbers_on_marks_can_be_read(open_page, path: Path, width: int) -> None:
    size = "all => all.map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    assert min(open_page(path, width).locator(".handle text").evaluate_all(size)) >= 10


def test_colours_are_those_of_the_other_parts_in_the_dark_too(open_page, path: Path) -> None:
    """Part 3 draws reconstruction in the page's first line colour, codebook in its second, commitment in its third."""
    drawn = {"reconstruction": 0, "codebook": 1, "commitment": 2, "miss": 0, "code:not(.idle) > path": 1}
    colours = []
    for dark in (False, True):
        page = open_page(path, dark=dark)

        def style(selector: str, name: str, page: Page = page) -> str:
            return page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name)

        lines = [style(f".key.c{i}", "color") for i in range(3)]
        for name, i in drawn.items():
            assert style(f".stage .{name}", "stroke") == lines[i], name
        marks = [style(f".stage .{name}", "stroke") for name in ("code:not(.idle) > path", "idle > path")]
        point = style(".point > circle:not(.hit, .ring)", "fill")
        assert len({*lines, point, marks[1]}) == 5
        for text in (".plane ~ p b", ".lead", ".said"):
            assert style(text, "color") not in lines  # on paper their contrast is 3.8, too little for words
        colours.append([*lines, *marks, point, style("body", "backgroundColor")])
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_no_other_script_runs(open_page, path: Path) -> None:
    path = path.with_name("other.html")
    path.write_text(
        whole_page("<script>window.other = 1</script><img src='data:,' onerror='window.other = 1'>"), "utf-8"
    )
    page = open_page(path)
    assert page.evaluate("typeof other") == "undefined"
    assert shown(page, "step") == "0"  # our own does
    assert len(open_page.faults) >= 2
    assert all("Content Security Policy" in fault for fault in open_page.faults)
    open_page.faults.clear()
