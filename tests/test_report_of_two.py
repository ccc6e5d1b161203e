"""Two runs side by side: the better is named only where there is one, and nothing is compared that is not the same."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.test_pages import Chart, Tree
from tests.test_report import Table, Tables, Text, comparison, decoded, noise, part, summary
from vqkit.report import Comparison, RunSummary, render_comparison, write_comparison

ROWS = [{"step": s, "loss": 1 / (s + 1), "perplexity": 10.0 + s} for s in range(0, 50, 10)]


def pair(first: dict | None = None, second: dict | None = None) -> tuple[RunSummary, RunSummary]:
    """Two runs alike but for their names and what is asked for."""
    shared = {"comparisons": [comparison()], "metrics": ROWS}
    return summary(name="one", **{**shared, **(first or {})}), summary(name="two", **{**shared, **(second or {})})


def tables(first: RunSummary, second: RunSummary) -> dict[str, Table]:
    return {table.caption: table for table in Tables(render_comparison(first, second)).tables}


def restored(c: Comparison, psnr: float) -> Comparison:
    return c._replace(reconstruction=noise(*c.original.shape), psnr=psnr)


def lines(text: str) -> list[list[str]]:
    """The alternative texts of the images of each line."""
    figures = re.findall(r'<figure class="row">.*?</figure>', text)
    return [[a["alt"] for name, a in Tree(figure).elements if name == "img"] for figure in figures]


# -- figures


@pytest.mark.parametrize(
    ("name", "one", "two", "better"),
    [
        ("PSNR (dB)", 27.0, 28.0, 2), ("SSIM", 0.9, 0.8, 1), ("codes used (%)", 99.0, 100, 2), ("perplexity", 9, 8, 1),
        ("PSNR on training images (dB)", 30.0, float("inf"), 2), ("MSE", 1e-3, 2e-3, 1), ("NMSE", 0.2, 0.1, 2),
        ("bits per pixel", 0.5, 0.25, 2), ("seconds", 3.0, 4.0, None), ("parameters", 3, 4, None), ("x", 1, 2, None),
        ("PSNR (dB)", 27.0, 27.0, None), ("PSNR (dB)", 27.00001, 27.00002, None), ("SSIM", float("nan"), 0.5, None),
        ("SSIM", 0.5, float("nan"), None),
        ("PSNR (dB)", "unknown", 3.0, None), ("PSNR (dB)", 3.0, None, None), ("PSNR (dB)", np.float32(3), 2, 1),
    ],
)  # fmt: skip
def test_the_better_figure_is_marked_where_one_is(name, one, two, better):
    first, second = ({name: v} if v is not None else {} for v in (one, two))
    table = tables(*pair({"figures": first}, {"figures": second}))["All numbers"]
    assert table.bold == (set() if better is None else {(1, better)})
    assert [i for i, cell in enumerate(table.rows[1]) if cell.endswith(" better") and i] == ([better] if better else [])
    base = name.partition(" (")[0]
    lower, no = base in ("MSE", "NMSE", "bits per pixel"), base in ("seconds", "parameters", "x")
    assert table.rows[1][0] == (name if no else f"{name} {'lower' if lower else 'higher'} is better")


def test_the_figures_at_the_top_are_those_of_a_report():
    figures = {"PSNR (dB)": 27.3, "parameters": 10, "perplexity": 5.0, "MSE": 0.1}
    table = tables(*pair({"figures": figures}, {"figures": figures}))["Figures"]
    assert table.rows[0] == ["", "one", "two"]
    assert [row[0].partition(" ")[0] for row in table.rows[1:]] == ["PSNR", "perplexity"]


# -- settings and origin


def test_only_the_settings_that_differ_are_compared():
    same = {"crop": 32, "update": "EMA()"}
    page = tables(
        *pair(
            {"config": {"model": {**same, "codes": 512, "old": 1}, "long": "x" * 500 + "1"}},
            {"config": {"model": {**same, "codes": 64}, "long": "x" * 500 + "2"}},
        )
    )
    none = "\N{EN DASH}"
    assert page["Settings that differ"].rows[1:3] == [["model.codes", "512", "64"], ["model.old", "1", none]]
    assert [row[0] for row in page["Settings that differ"].rows[3:]] == ["long"]  # cut, yet not taken for the same
    assert page["Settings that are the same"].rows == [["model.crop", "32"], ["model.update", "EMA()"]]


def test_of_equal_configurations_nothing_is_listed():
    first, second = pair()
    assert "Settings that differ" not in tables(first, second)
    assert "None: the two have the same configuration." in Text(render_comparison(first, second)).words


def test_the_origin_of_both_is_told_and_different_data_are_pointed_out():
    first, second = pair({"provenance": {"data": "a", "torch": "2.6"}}, {"provenance": {"data": "b"}})
    assert tables(first, second)["Origin"].rows[1:] == [["data", "a", "b"], ["torch", "2.6", "\N{EN DASH}"]]
    warned = "trained on different data"
    assert warned in Text(render_comparison(first, second)).words
    assert warned not in Text(render_comparison(first, first)).words


@pytest.mark.parametrize(
    ("names", "shown"),
    [(("", ""), ("first", "second")), (("a", "a"), ("a (first)", "a (second)")), (("a", "b"), ("a", "b"))],
)
def test_the_two_are_always_told_apart(names, shown):
    first, second = (summary(name=name) for name in names)
    assert tables(first, second)["Figures"].rows[0] == ["", *shown]


# -- reconstructions


def test_the_same_image_stands_in_one_line_and_the_nearer_is_named():
    a, b, c, d = (comparison(name) for name in "abcd")
    other = [restored(b, 20.0), restored(a, 30.0), restored(d, 27.31200001)]
    text = render_comparison(*pair({"comparisons": [a, b, c, d]}, {"comparisons": other}))
    assert lines(text) == [
        ["a, original", "a, one · 27.31 dB", "a, two · 30.00 dB · nearer"],
        ["b, original", "b, one · 27.31 dB · nearer", "b, two · 20.00 dB"],
        ["d, original", "d, one · 27.31 dB", "d, two · 27.31 dB"],
    ]
    words = Text(text).words
    assert "The 3 images that both runs show. By PSNR one is nearer in 1, two is nearer in 1." in words
    assert "Left out: 1 that only one shows" in words
    shown = {
        attributes["alt"]: decoded(attributes["src"]) for _, attributes in Tree(text).elements if "alt" in attributes
    }
    np.testing.assert_array_equal(shown["a, original"], a.original)
    np.testing.assert_array_equal(shown["b, one · 27.31 dB · nearer"], b.reconstruction)
    np.testing.assert_array_equal(shown["b, two · 20.00 dB"], other[0].reconstruction)


def test_images_that_differ_under_one_name_are_not_compared():
    a, b = comparison("a"), comparison("b")
    text = render_comparison(*pair({"comparisons": [a, b]}, {"comparisons": [a, comparison("b")]}))
    assert [line[0] for line in lines(text)] == ["a, original"]
    grey = comparison("a", channels=1)
    for nothing in ([comparison("a")], [comparison("other")], [grey], [comparison("a", side=8)]):
        text = render_comparison(*pair({"comparisons": [a]}, {"comparisons": nothing}))
        assert lines(text) == []
        assert "No image is shown by both runs" in Text(text).words


def test_the_detail_is_where_the_two_differ_most_and_has_its_own_quality():
    original = np.full((300, 400, 3), 100, np.uint8)
    ones, twos = original.copy(), original.copy()
    ones[0:90, 0:90] = twos[0:90, 0:90] = 200  # both wrong alike
    twos[150, 250:260] = 200  # in the block of rows 96 to 191 and columns 192 to 287
    first, second = (Comparison("cat", original, x, 10.0, "held out") for x in (ones, twos))
    text = render_comparison(*pair({"comparisons": [first]}, {"comparisons": [second]}))
    psnr = 10 * np.log10(255**2 / (10 * 100**2 / 96**2))
    names = f"cat: where the two differ most, pixel by pixel, one · exact · nearer, two · {psnr:.2f} dB"
    name, one, two = (names.rsplit(", ", 2)[i] for i in range(3))
    assert lines(text)[1] == [f"{name}, original", f"{name}, {one}", f"{name}, {two}"]
    assert "By PSNR one is nearer in 0, two is nearer in 0." in Text(text).words
    (uri,) = (a["src"] for _, a in Tree(text).elements if a.get("alt") == f"{name}, {two}")
    np.testing.assert_array_equal(decoded(uri), twos[96:192, 192:288])


def test_an_image_that_one_run_trained_on_is_said_to_be_that():
    a = comparison("a", split="held out")
    text = render_comparison(*pair({"comparisons": [a]}, {"comparisons": [a._replace(split="training")]}))
    assert "24 \N{MULTIPLICATION SIGN} 24 · held out / training" in Text(text).words


# -- charts


def test_each_quantity_has_a_chart_of_both_runs():
    short = [{"step": s, "loss": 2.0 + s} for s in range(0, 30, 10)]
    text = render_comparison(*pair({}, {"metrics": short}))
    drawn = Chart(part(text, "Loss"), log=True)
    np.testing.assert_allclose(drawn.points("line c0")[0], [(r["step"], r["loss"]) for r in ROWS], rtol=0.05, atol=0.2)
    np.testing.assert_allclose(drawn.points("line c1")[0], [(r["step"], r["loss"]) for r in short], rtol=0.05, atol=0.2)
    alone = part(text, "Perplexity")
    assert Text(alone).words.split()[:5] == ["one", "50", "two", "not", "measured"]
    assert Chart(alone).points("line c1") == []


def test_codebooks_of_different_sizes_share_a_chart():
    first = {"counts": np.array([8, 0, 4, 4]), "atlas": noise(4, 8, 8, 3)}
    second = {"counts": np.array([1, 3]), "atlas": noise(2, 8, 8, 1)}
    drawn = Chart(part(render_comparison(*pair(first, second)), "By rank"), log=True)
    np.testing.assert_allclose(drawn.points("line c0")[0], [(1, 50), (2, 25), (3, 25)], rtol=0.02)
    np.testing.assert_allclose(drawn.points("line c1")[0], [(1, 75), (2, 25)], rtol=0.02)
    assert not [d for kind, d in drawn.paths if kind == "line c2"]  # "even" is another share in each


# -- the page


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "</b></td>&amp;"])
def test_hostile_names_stay_text(text):
    def page(word: str) -> str:
        image = Comparison(word, np.zeros((9, 9, 3), np.uint8), np.ones((9, 9, 3), np.uint8), 9.0, "held out")
        run = {"comparisons": [image], "metrics": [{"step": 1, word: 2.0}], "figures": {word: word, "SSIM": 1.0}}
        first = summary(name=word, subtitle=word, config={word: word}, provenance={word: word}, **run)
        return render_comparison(first, summary(name=word + "2", config={}, **{**run, "figures": {"SSIM": word}}))

    plain, hostile = Tree(page("text")), Tree(page(text))
    assert [name for name, _ in hostile.elements] == [name for name, _ in plain.elements]
    assert [a.keys() for _, a in hostile.elements] == [a.keys() for _, a in plain.elements]


def test_the_page_loads_nothing_and_its_links_lead_somewhere():
    tree = Tree(text := render_comparison(*pair()))
    ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in tree.elements:
        assert name not in ("script", "link", "iframe", "object", "base")
        for key in {"src", "href", "srcset", "action", "poster"} & attributes.keys():
            assert attributes[key].startswith("data:image/") or attributes[key].removeprefix("#") in ids
    assert "//" not in re.sub(r"base64,[\w+/=]*", "", text)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": [], "figures": {}, "config": {}, "provenance": {}},
        {"metrics": [{"step": 0, "loss": float("nan"), "perplexity": float("inf")}]},
        {"counts": np.array([7]), "atlas": noise(1, 4, 4, 1), "comparisons": [comparison(channels=1)]},
        {"counts": np.arange(20_000), "atlas": noise(20_000, 1, 1, 3)},
    ],
)
def test_any_two_runs_have_a_page(changes):
    for runs in ((summary(**changes), summary()), (summary(), summary(**changes)), (summary(**changes),) * 2):
        tree = Tree(render_comparison(*runs))
        assert len(tree.named("section")) == 6


def test_the_largest_comparison_stays_under_three_megabytes(tmp_path):
    photos = [Comparison(f"photo {i}", noise(1000, 1000, 3), noise(1000, 1000, 3), 9.0, "training") for i in range(6)]
    names = ("loss", *map(str, range(14)))
    rows = [{"step": s, **{name: float(s % 97) for name in names}} for s in range(2000)]
    run = summary(comparisons=photos, metrics=rows, counts=np.arange(8192), atlas=noise(8192, 1, 1, 3))
    config = {f"setting {i}": "<" * 1000 for i in range(100)}
    write_comparison(path := tmp_path / "two.html", run, summary(**{**vars(run), "config": config}))
    assert 1_500_000 < path.stat().st_size < 3_000_000
    shown = [int(share) for share in re.findall(r"shown at (\d+)%", path.read_text("utf-8"))]
    assert len(shown) == 6
    assert min(shown) >= 15  # none starved by the others
