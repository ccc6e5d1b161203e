"""The report: true to the run's arrays, under 3 MB whatever the run, and never half written."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.test_pages import Chart
from vqkit.report import Comparison, RunSummary, render, write_report

rng = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def comparison(name: str = "cat", split: str = "held out", side: int = 24, channels: int = 3) -> Comparison:
    return Comparison(name, noise(side, side, channels), noise(side, side, channels), 27.312, split)


def summary(**changes) -> RunSummary:
    run = RunSummary(
        title="A run",
        config={"recipe": "photos", "model": {"dim": 64, "layers": {}}, "update": "EMA(decay=0.99)"},
        metrics=[{"step": s, "loss": 1 / (s + 1), "perplexity": 10.0 + s, "psnr": 20.0} for s in range(0, 50, 10)],
        comparisons=[comparison()],
        counts=np.array([6, 0, 2, 8]),
        atlas=noise(4, 8, 8, 3),
        figures={"PSNR (dB)": 27.312, "perplexity": 2.65, "parameters": 412_345},
        provenance={"command": "vqkit train"},
    )
    return dataclasses.replace(run, **changes)


class Text(HTMLParser):
    """The elements with their attributes, and the words a reader sees, one space between any two pieces."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(re.sub("<style>.*?</style>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data + " "

    def images(self) -> dict[str, np.ndarray]:
        """Alternative text to pixels."""
        return {a["alt"]: decoded(a["src"]) for tag, a in self.elements if tag == "img"}


@dataclasses.dataclass
class Table:
    """What a reader finds in a table, and which of its cells are bold."""

    caption: str = ""
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    bold: set[tuple[int, int]] = dataclasses.field(default_factory=set)


class Tables(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif {"td", "th"} & {*self._open}:
            rows = self.tables[-1].rows
            rows[-1][-1] += data
            if "b" in self._open:
                self.tables[-1].bold.add((len(rows) - 1, len(rows[-1]) - 1))


def part(text: str, title: str) -> str:
    """The figure of a chart, by its title."""
    return "<" + text.partition(f"<strong>{title}<")[2].partition("</figure>")[0]


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


# -- what it says


def test_the_report_shows_every_part_of_the_run():
    words = Text(render(summary())).words
    for said in (
        "A run", "PSNR 27.31  dB", "412,345", "24 \N{MULTIPLICATION SIGN} 24 · held out", "reconstruction · 27.31 dB",
        "Losses", "Perplexity", "recipe photos", "model.dim 64", "model.layers {}", "update EMA(decay=0.99)",
        "command vqkit train", "Codes never chosen: 1 1 ",
    ):  # fmt: skip
        assert said in words, said


def test_the_difference_is_four_times_the_absolute_one():
    c = comparison()
    images = Text(render(summary(comparisons=[c]))).images()
    np.testing.assert_array_equal(images["cat, original"], c.original)
    np.testing.assert_array_equal(images["cat, reconstruction · 27.31 dB"], c.reconstruction)
    expected = np.clip(4 * abs(c.original.astype(float) - c.reconstruction.astype(float)), 0, 255)
    np.testing.assert_array_equal(images["cat, difference \N{MULTIPLICATION SIGN}4"], expected)


def test_the_detail_is_the_block_with_the_greatest_error():
    original = np.full((300, 400, 3), 100, np.uint8)
    damaged = original.copy()
    damaged[150, 250:260] = 200  # in the block of rows 96 to 191 and columns 192 to 287
    run = summary(comparisons=[Comparison("cat", original, damaged, 30.0, "held out")])
    images = Text(render(run)).images()
    (name,) = (alt for alt in images if "pixel by pixel, reconstruction" in alt)
    np.testing.assert_array_equal(images[name], damaged[96:192, 192:288])


@pytest.mark.parametrize(
    ("counts", "perplexity", "entropy", "redundancy", "used"),
    [([5, 5, 5, 5], 4, 2, 0, 4), ([8, 8, 0, 0], 2, 1, 50, 2), ([0, 9, 0, 0], 1, 0, 100, 1),
     ([1, 1, 2, 4], 3.364, 1.75, 12.5, 4), ([3], 1, 0, 0, 1)],
)  # fmt: skip
def test_what_the_use_of_the_codes_means(counts, perplexity, entropy, redundancy, used):
    text = render(summary(counts=np.array(counts), atlas=noise(len(counts), 8, 8, 3)))
    (table,) = (t for t in Tables(text).tables if t.caption == "Use of the codes")
    figures = {name: float(value) for name, value in table.rows}
    largest = pytest.approx(100 * max(counts) / sum(counts), 1e-3)
    assert figures == {
        "codes": len(counts), "codes used": used, "largest share (%)": largest,
        "perplexity": perplexity, "entropy (bits)": entropy, "redundancy (%)": redundancy,
    }  # fmt: skip


def test_the_share_of_each_code_is_drawn_by_rank():
    counts = np.array([0, 4, 1, 0, 90, 5])
    drawn = Chart(part(render(summary(counts=counts, atlas=noise(6, 4, 4, 3))), "By rank"), log=True)
    (shares,), (even,) = drawn.points("line c0"), drawn.points("line c1")
    np.testing.assert_allclose(shares, [(1, 90), (2, 5), (3, 4), (4, 1)], rtol=0.03)
    np.testing.assert_allclose(even, [(1, 100 / 6), (6, 100 / 6)], rtol=0.03)


def test_of_very_many_codes_the_line_keeps_its_ends():
    counts = np.arange(70_000)
    drawn = Chart(part(render(summary(counts=counts, atlas=noise(70_000, 1, 1, 3))), "By rank"), log=True)
    (shares,) = drawn.points("line c0")
    assert len(shares) == 500
    np.testing.assert_allclose(shares[0], (1, 100 * counts[-1] / counts.sum()), rtol=0.03, atol=200)
    np.testing.assert_allclose(shares[-1], (69_999, 100 / counts.sum()), rtol=0.03)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
def test_each_tile_of_the_atlas_shows_the_code_that_it_names(channels, dtype):
    counts, atlas = np.array([3, 0, 9, 1, 0, 7, 2] * 5, dtype), noise(35, 8, 8, channels)
    text = render(summary(counts=counts, atlas=atlas))
    (uri,) = (a["href"] for tag, a in Text(text).elements if tag == "image")
    sprite = decoded(uri)
    tiles = re.findall(r'<path d="M(\d+) (\d+)h1v1h-1z"><title>(\d+) · ([^<]*)<', text)
    assert sorted(int(code) for _, _, code, _ in tiles) == list(range(35))
    struck = re.search(r'class="gaps" d="([^"]*)"', text)[1]
    for x, y, code, share in tiles:
        pixels = sprite[8 * int(y) :, 8 * int(x) :][:8, :8, :3]
        assert (f"M{x} {y}l1 1" in struck) == (counts[int(code)] == 0)
        if counts[int(code)]:
            assert share == f"{100 * counts[int(code)] / counts.sum():.2f}%"
            np.testing.assert_array_equal(pixels, np.broadcast_to(atlas[int(code)], (8, 8, 3)))
        else:
            assert share == "never"
            assert (pixels == pixels[..., :1]).all()
            assert np.ptp(pixels) <= 64


def test_an_atlas_of_very_many_codes_shows_the_most_used():
    counts = np.arange(9000)
    text = render(summary(counts=counts, atlas=noise(9000, 1, 1, 3)))
    shown = [int(code) for code in re.findall(r"<title>(\d+) ·", text)]
    assert sorted(shown) == list(range(9000 - 8192, 9000))
    assert "The 8,192 most used of 9,000 are shown" in text


def test_the_atlas_runs_from_dark_to_light_and_from_warm_to_cool():
    atlas = np.broadcast_to(noise(240, 1, 1, 3), (240, 4, 4, 3))
    text = render(summary(counts=np.ones(240, int), atlas=atlas))
    rows: dict[int, list[int]] = {}
    for x, y, code in re.findall(r'"M(\d+) (\d+)h1v1h-1z"><title>(\d+) ', text):
        rows.setdefault(int(y), []).insert(int(x), int(code))
    colours = atlas[:, 0, 0].astype(float)
    for y, codes in rows.items():
        assert (np.diff(colours[codes, 0] - colours[codes, 2]) <= 0).all()
        if y + 1 in rows:
            assert colours[codes].mean(1).max() <= colours[rows[y + 1]].mean(1).min() + 1e-9


def test_a_metric_that_a_row_lacks_is_no_gap_but_nan_is():
    def lines(rows: list[dict[str, float]]) -> int:
        chart = render(summary(metrics=rows)).partition(">Psnr2<")[2].partition("</svg>")[0]
        return re.search(r'class="line c0" d="([^"]*)"', chart)[1].count("M")

    rows = [{"step": s, "loss": 1.0} | ({} if s % 2 else {"psnr2": s}) for s in range(9)]
    assert lines(rows) == 1
    rows[4]["psnr2"] = float("nan")
    assert lines(rows) == 2


def test_losses_share_a_chart_and_perplexities_share_one():
    names = ("loss", "codebook", "perplexity", "batch_perplexity", "psnr")
    rows = [{"step": s, **{name: float(i + s) for i, name in enumerate(names, 1)}} for s in range(3)]
    text = render(summary(metrics=rows))
    labels = {title: Text(part(text, title)).words.split() for title in ("Losses", "Perplexity", "Psnr")}
    assert "Batch perplexity" not in text
    assert labels["Losses"][:4] == ["loss", "3", "codebook", "4"]
    assert labels["Perplexity"][:5] == ["perplexity", "5", "batch", "perplexity", "6"]
    assert labels["Psnr"][:2] == ["last", "7"]


def test_of_very_many_rows_an_even_share_is_drawn_the_first_and_the_last_among_them():
    text = render(summary(metrics=[{"step": s, "perplexity": float(s)} for s in range(10_000)]))
    chart = text.partition(">Perplexity<")[2].partition("</svg>")[0]
    points = re.search(r'class="line c0" d="M([^"]*)"', chart)[1].split("L")
    assert len(points) == 500
    words = " ".join(Text(text).words.split())
    assert "last 9,999 " in words and "25 of 10,000 rows Metrics by step step perplexity 0 0 417 417 " in words


def test_long_settings_are_cut_and_surrogates_from_file_names_survive(tmp_path):
    run = summary(config={"long": "x" * 100_000}, comparisons=[comparison("caf\udce9.png")])
    write_report(tmp_path / "report.html", run)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "caf?.png" in text
    assert "x" * 400 + " …" in text
    assert "x" * 401 not in text


# -- every run has a report, and no report is large


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": [{"step": 1, "loss": 1.0}], "figures": {}, "config": {}, "provenance": {}},
        {"metrics": [{"step": 0, "loss": float("nan"), "commitment": float("inf"), "perplexity": 1}]},
        {"counts": np.array([7]), "atlas": noise(1, 4, 4, 1)},
        {"comparisons": [comparison(side=28, channels=1)], "atlas": noise(4, 28, 28, 1)},
        {"comparisons": [comparison(side=1), comparison(side=200)]},
        {"comparisons": [Comparison("same", a := noise(8, 8, 3), a, float("inf"), "training")]},
        {"atlas": noise(4, 33, 70, 3)},
    ],
)
def test_every_run_has_a_report(changes):
    text = render(summary(**changes))
    assert text.count("<section") >= 4
    assert "nan" not in re.sub(r"base64,[\w+/=]*", "", text)


def test_the_largest_run_stays_under_three_megabytes(tmp_path):
    photos = [Comparison(f"photo {i}", noise(1000, 1000, 3), noise(1000, 1000, 3), 9.0, "training") for i in range(6)]
    run = summary(
        comparisons=photos,
        counts=rng.geometric(0.01, 8192) - 1,
        atlas=noise(8192, 16, 16, 3),
        metrics=[
            {"step": s, **{name: rng.random() for name in ("loss", "codebook", *map(str, range(14)))}}
            for s in range(3000)
        ],
        config={f"setting {i}": "<" * 1000 for i in range(100)},
    )
    write_report(tmp_path / "report.html", run)
    size = (tmp_path / "report.html").stat().st_size
    assert 2_000_000 < size < 3_000_000
    shown = re.findall(r"shown at (\d+)%", (tmp_path / "report.html").read_text("utf-8"))
    assert len(shown) == 6
    assert min(map(int, shown)) >= 15  # none starved by the others or by the atlas


# -- the file


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_page(tmp_path, monkeypatch, broken):
    path = tmp_path / "report.html"
    write_report(path, summary(title="old"))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, summary(title="new"))
    assert path.read_bytes() == before
    assert b"<h1>old</h1>" in before
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_page_is_replaced_and_readable_by_others(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, summary(title="old"))
    write_report(str(path), summary(title="new"))
    assert "<h1>new</h1>" in path.read_text("utf-8")
    assert os.listdir(tmp_path) == ["report.html"]
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
