"""Pages: nothing is loaded, nothing is injected, and a chart's marks lie where its own ticks say they do."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vqkit.pages import (
    Html,
    Linear,
    Log,
    Section,
    Series,
    encode,
    encode_within,
    folded,
    headline,
    image_row,
    key_values,
    line_chart,
    number,
    page,
    table,
)

VOID = {"meta", "img", "br", "hr"}


class Tree(HTMLParser):
    """A document's elements with their attributes; fails where a tag is closed that is not the last open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class Chart:
    """A chart as a reader has it: positions become values by way of the tick labels, nothing else."""

    def __init__(self, figure: str, log: bool = False) -> None:
        svg = re.search(r"<svg.*</svg>", figure)
        assert svg
        root = ElementTree.fromstring(svg[0])
        self.paths = [(p.get("class", ""), p.get("d", "")) for p in root.iter("path")]
        texts = [(t.get("class"), float(t.get("x", "")), float(t.get("y", "")), t.text) for t in root.iter("text")]
        self.x = self._ruler([(x, text) for kind, x, _, text in texts if kind == "x"], False)
        # The baseline of a label's digits lies 3.5 units below its tick.
        self.y = self._ruler([(y - 3.5, text) for kind, _, y, text in texts if kind == "y"], log)

    @staticmethod
    def _ruler(ticks, log):
        at = np.array([position for position, _ in ticks])
        values = np.array([float(text.replace(",", "").replace("\N{MINUS SIGN}", "-")) for _, text in ticks])
        slope, offset = np.polyfit(at, np.log10(values) if log else values, 1)
        return lambda position: 10 ** (slope * position + offset) if log else slope * position + offset

    def points(self, kind: str) -> list[list[tuple[float, float]]]:
        """The values of each connected stretch of a path of pairs."""
        (path,) = (d for name, d in self.paths if name == kind)
        stretches = (re.findall(r"(-?[\d.]+) (-?[\d.]+)", part) for part in path.split("M")[1:])
        return [[(self.x(float(a)), self.y(float(b))) for a, b in stretch] for stretch in stretches]


def chart(y, log: bool = False, x=None) -> Chart:
    x = np.arange(len(y)) if x is None else x
    figure = line_chart([Series("a", x, y)], Log() if log else Linear(), title="t", x_label="step")
    return Chart(figure, log)


def whole_page(text: str = "text") -> str:
    image = encode(np.zeros((4, 5, 3), np.uint8))
    content = [
        headline({text: 1.5}),
        key_values({text: {text: text}}, text),
        key_values({text: {text: text}, f"{text}2": {text: 1}}, text),
        table([text], [[text], [None]], text),
        folded(text, text),
        image_row([(text, image)], text, text),
        line_chart([Series(text, [0, 1], [1, 2])] * 2, Linear(), title=text, x_label=text, unit=text),
    ]
    return page(text, [Section(text, content, text), Section(text, [])], text, headline({text: text}))


# -- the document


def test_page_is_a_well_formed_document_whose_links_lead_somewhere():
    tree = Tree(whole_page())
    assert [name for name, _ in tree.elements[:2]] == ["html", "head"]
    assert tree.named("html") == [{"lang": "en"}]
    assert len(tree.named("h1")) == len(tree.named("main")) == len(tree.named("title")) == 1
    ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for attributes in tree.named("a")]
    assert len(targets) == 2
    assert all(target[1:] in ids for target in targets)
    assert all(section["aria-labelledby"] in ids for section in tree.named("section"))
    assert all(image["alt"] for image in tree.named("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in tree.named("svg"))


def test_page_loads_nothing_from_outside():
    text = whole_page()
    tree = Tree(text)
    policy = [m["content"] for m in tree.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    assert not {"script", "link", "iframe", "object", "base"} & {name for name, _ in tree.elements}
    for _, attributes in tree.elements:
        for key in {"src", "href", "srcset", "xlink:href", "action", "data", "poster"} & attributes.keys():
            assert attributes[key].startswith(("data:image/", "#"))
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in re.sub(r"base64,[\w+/=]*", "", text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "\"><img src=x onerror='alert(1)'>",
        "</style></title><b>",
        "&amp;",
        "a < b & 'c'",
    ],
)
def test_hostile_text_stays_text(text):
    plain, hostile = Tree(whole_page("text")), Tree(whole_page(text))
    assert [name for name, _ in hostile.elements] == [name for name, _ in plain.elements]
    assert [a.keys() for _, a in hostile.elements] == [a.keys() for _, a in plain.elements]
    assert hostile.named("img")[0]["alt"] == f"{text}, {text}"
    assert "".join(hostile.words).count(text) == "".join(plain.words).count("text")


def test_a_script_is_allowed_by_its_hash_alone():
    script, style = "const a = 1 < 2 && 'β';\n", "b{color:red}"
    text = page("t", [Section("a", [], name="here"), Section("b", [])], "s", Html(""), script, style)
    tree = Tree(text)
    policy = [m["content"] for m in tree.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    plain = Tree(whole_page())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == [f"{plain.named('meta')[1]['content']}; script-src 'sha256-{digest}'"]
    assert text.count(f"<script>{script}</script>") == 1
    assert text.index(style) < text.index("</style>")
    assert [section["id"] for section in tree.named("section")] == ["here", "s2"]
    assert [link["href"] for link in tree.named("a")] == ["#here", "#s2"]


@pytest.mark.parametrize("end", ["</script>", "</SCRIPT ", "<!-- "])
def test_a_script_that_html_would_end_early_is_refused(end):
    with pytest.raises(ValueError, match=f"script contains '{end.strip().rstrip('>')}"):
        page("t", [], "s", Html(""), f"const a = '{end}'")


def test_markup_is_escaped_once_and_html_not_again():
    assert folded("<", Html("<b>x</b>")) == "<details><summary>&lt;</summary><b>x</b></details>"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3, "3"), (np.int64(412_345), "412,345"), (31.2543, "31.25"), (99.996, "100"),
     (0.00031416, "0.0003142"), (123456.0, "123,500"), (1.5e-7, "1.5e-07"), (float("nan"), "NaN"),
     (float("inf"), "inf"), ("x", "x"), (-2.5, "-2.5")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


# -- lines

values = st.floats(-1e9, 1e9).map(lambda v: float(f"{v:.6g}"))


@settings(max_examples=100, deadline=None)
@example([1e8, 1e8 + 10], 1.0)
@example([0.0, -2.2e-309], 1.0)
@given(st.lists(values, min_size=2, max_size=30), st.floats(1e-3, 1e4))
def test_points_lie_where_the_ticks_say(y, spacing):
    x = np.arange(len(y)) * spacing
    (points,) = chart(y, x=x).points("line c0")
    spread = max(max(y) - min(y), 0.1 * max(map(abs, y)), 1e-9)
    # A position is written to 0.1 of 166 units, of which the data fill at least a third.
    np.testing.assert_allclose([b for _, b in points], y, atol=0.005 * spread)
    np.testing.assert_allclose([a for a, _ in points], x, atol=0.002 * x[-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=2, max_size=30).filter(lambda e: max(e) - min(e) > 0.7))
def test_points_lie_where_logarithmic_ticks_say(exponents):
    (points,) = chart(10 ** np.array(exponents), log=True).points("line c0")
    np.testing.assert_allclose(np.log10([b for _, b in points]), exponents, atol=0.005 * 13)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e9))
def test_ticks_are_round_evenly_spaced_and_around_the_data(low, extent):
    ticks = Linear().ticks(low, low + extent)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-8 * extent
    assert ticks[-1] >= low + extent * (1 - 1e-8)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert min(abs(steps[0] / 10 ** np.floor(np.log10(steps[0] * 1.0001)) - m) for m in (1, 2, 2.5, 5)) < 1e-4


def test_nan_and_infinity_are_gaps_and_lone_points_dots():
    nan, inf = float("nan"), float("inf")
    drawn = chart([1, 2, nan, 3, inf, 4, 5, 6, -inf, 1e200, 2])
    assert [len(stretch) for stretch in drawn.points("line c0")] == [2, 3]
    np.testing.assert_allclose(drawn.points("dots c0"), [[(3, 3)], [(10, 2)]], atol=0.05)
    (stretch, _) = chart([1, 10, 0, 100, 10, -5], log=True).points("line c0")
    np.testing.assert_allclose(stretch, [(0, 1), (1, 10)], rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "y", [[], [5.0], [0.0, 0.0], [float("nan")] * 3, [1e9, 1e9 + 1e-6], [0.0, 5e-324], [-1e-9, 1e-9], [1e99, -1e99]]
)
@pytest.mark.parametrize("scale", [Linear(), Log()])
def test_a_chart_of_little_or_nothing_is_still_a_chart(y, scale):
    figure = line_chart([Series("a", range(len(y)), y)], scale, title="t", x_label="step")
    assert "nan" not in re.search("<svg.*", figure)[0]
    Tree(figure)


def test_the_legend_gives_the_last_finite_value_of_each_line():
    both = [Series("up", [0, 1, 2], [1, 2.5, float("nan")]), Series("none", [0], [float("nan")])]
    words = "".join(Tree(line_chart(both, Linear(), title="t", x_label="step")).words)
    assert "up 2.5" in words
    assert "none no finite value" in words
    words = "".join(
        Tree(line_chart([Series("a", [0], [1], "as noted")] * 2, Linear(), title="t", x_label="step")).words
    )
    assert words.startswith("t a as noteda as noted")


# -- tables


def test_values_of_several_owners_stand_under_their_names():
    table = ElementTree.fromstring(key_values({"a": {"x": 1.5, "y": "<"}, "b": {"z": 3, "x": 2}}, "both"))
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    none = "\N{EN DASH}"
    assert rows == [["", "a", "b"], ["x", "1.5", "2"], ["y", "<", none], ["z", none, "3"]]
    assert [cell.tag for row in table.iter("tr") for cell in row][:5] == ["td", "th", "th", "th", "td"]
    assert [key.get("class") for key in table.iter("i")] == ["key c0", "key c1"]  # the colours of their lines


def test_values_of_one_need_no_head_and_long_ones_are_cut():
    table = ElementTree.fromstring(key_values({"": {"x": "y" * 401, "z": "y" * 400}}, "one"))
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows == [["x", "y" * 400 + " …"], ["z", "y" * 400]]


# -- images


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_exact(channels):
    array = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    (image,) = Tree(image_row([("original", encode(array))], "cat", "", "pixelated")).named("img")
    np.testing.assert_array_equal(decoded(image["src"]).reshape(array.shape), array)
    assert (image["width"], image["height"], image["class"]) == ("7", "9", "pixelated")
    assert image["alt"] == "cat, original"


def test_images_that_are_compared_fit_their_bytes_at_one_scale():
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    flat = np.full_like(noise, 90)
    images = encode_within([noise, flat], 60_000)
    assert 30_000 < sum(len(image.data) for image in images) <= 60_000
    assert {image.format for image in images} == {"webp"}
    assert len({image.scale for image in images}) == 1
    assert decoded(images[0].uri()).shape[:2] == tuple(round(images[0].scale * side) for side in (600, 800))
    assert abs(decoded(images[1].uri()).astype(int) - 90).max() <= 2


def test_images_that_fit_stay_exact():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (image,) = encode_within([noise], 20_000)
    np.testing.assert_array_equal(decoded(image.uri()), noise)
