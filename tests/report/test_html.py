"""The page: complete, escaped, honest about signs and spreads, and every picture decodes."""

import base64
import errno
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dmtl.report import Cell, Chart, MetricRow, ReportData, write_report
from dmtl.report.html.content import Uncertainty, UncertaintyRow, render

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and collects text, images and everything that would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.images, self.words, self.links, self.scripts = [], [], [], [], 0
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[a] for a in ("src", "href", "srcset", "xlink:href") if a in attributes]
        self.scripts += tag == "script" or any(a.startswith("on") for a in attributes)
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag

    def handle_data(self, text):
        if self.stack and self.stack[-1] != "style":
            self.words.append(text)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def pixels(uri):
    head, body = uri.split(",", 1)
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
        image.load()
        return np.asarray(image)


def test_page_is_complete_and_needs_nothing_else(data, tmp_path):
    path = write_report(tmp_path / "new" / "report.html", data)
    page = Page(path.read_text(encoding="utf-8"))
    for words in (
        "A report",
        "Steps",
        "1000",
        "mIoU",
        "Same batches for both.",
        "not labelled in training",
        "image3",
        "sky",
        "0 to 1.1 nats",
    ):
        assert words in page.text, words
    assert page.scripts == 0
    assert all(link.startswith("data:") for link in page.links)
    assert re.findall(r"url\(|@import|https?://", path.read_text()) == []
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_every_picture_decodes_and_has_a_text(data):
    page = Page(render(data))
    assert len(page.images) == 5
    for image in page.images:
        array = pixels(image["src"])
        assert array.shape[:2] == (int(image["height"]), int(image["width"]))
        assert "image3" in image["alt"]
    assert np.array_equal(pixels(page.images[0]["src"]), data.samples[0].image)
    assert {i["alt"] for i in page.images[1:]} == {
        f"semseg, {c}, image image3"
        for c in ("label", "initial map", "step 1, final", "uncertainty (8 samples)")
    }


def test_large_pictures_are_reduced(data):
    data.samples[0].image = np.zeros((700, 1400, 3), np.uint8)
    assert pixels(Page(render(data)).images[0]["src"]).shape == (160, 320, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_pictures_are_refused(data, bad):
    data.samples[0].image = bad
    with pytest.raises(ValueError, match=r"picture: rgb must be a uint8 array \[H, W, 3\], got "):
        render(data)


def test_everything_is_escaped(data):
    evil = '<script>alert("x")</script>&\'"'
    data.title = evil
    data.facts, data.notes = [(evil, evil)], [evil]
    data.metrics = [MetricRow(evil, evil, evil, True, {evil: 1.0, "b" + evil: 2.0})]
    data.delta = {"b" + evil: 3.0}
    data.curves = [Chart(evil, evil, evil, {evil: ([0, 1], [1, 2])})]
    data.legends = {evil: [(evil, (1, 2, 3))]}
    data.uncertainty = Uncertainty(evil, 8, 48, [UncertaintyRow(evil, 0.5, evil, evil)])
    data.samples[0].id = data.samples[0].note = evil
    data.samples[0].rows = {evil: [Cell(evil, data.samples[0].image, evil, evil)]}
    data.label_matrix = type(data.label_matrix)([evil], [evil], np.ones((1, 1), bool))
    text = render(data)
    page = Page(text)
    assert page.scripts == 0 and "<script" not in text and text.count(evil) == 0
    assert evil.split("&")[0] in page.text


@pytest.mark.parametrize(
    ("delta", "runs", "shown", "verdict"),
    [
        (
            (1.5, 0.4),
            3,
            "+1.50",
            "DiffusionMTL is ahead of MTL by more than one standard deviation, over 3 runs of each.",
        ),
        (
            (-1.5, 0.4),
            3,
            "\N{MINUS SIGN}1.50",
            "DiffusionMTL is behind MTL by more than one standard deviation, over 3 runs of each.",
        ),
        (
            (0.3, 0.4),
            3,
            "+0.30",
            "No clear difference: the mean over 3 runs of each lies within one standard deviation of zero.",
        ),
        (-2.0, 1, "\N{MINUS SIGN}2.00", "DiffusionMTL is behind MTL. There is only one run of each"),
        (float("nan"), 1, "n/a", "No Delta_MTL: at least one metric"),
    ],
)
def test_headline_says_sign_and_spread(data, delta, runs, shown, verdict):
    data.delta, data.runs = {"DiffusionMTL": delta}, runs
    text = Page(render(data)).text
    assert shown in text and verdict in text
    assert ("± 0.40" in text.replace("\N{NARROW NO-BREAK SPACE}", " ")) == (runs == 3)


def test_better_value_is_marked_by_direction(data):
    best = re.findall(r'<td class="num best">([\d.]+)', render(data))
    assert best == ["42.00", "80.00", "0.5000"]
    assert render(data).count("↑</span>") == 2 and render(data).count("↓</span>") == 1


def test_other_metrics_are_a_click_away(data):
    text = render(data)
    assert "Show all 3 metrics" in text and text.count(' minor"') == 1
    data.metrics = [row for row in data.metrics if row.primary]
    assert "Show all" not in render(data) and "in grey do not" not in render(data)


def test_gains_are_positive_for_better(data):
    gains = re.findall(r'<td class="num gain (\w*)">([^&]*)', render(data))
    assert [tone for tone, _ in gains] == ["good", "bad", "bad", "good"]
    assert [
        value.split("\N{NARROW NO-BREAK SPACE}")[0].replace("\N{MINUS SIGN}", "-") for _, value in gains
    ] == ["+5.0", "-1.2", "-2.0", "+1.50"]


def test_uncertainty_is_counted_and_set_against_chance(data):
    text = render(data)
    words = Page(text).text
    assert "higher where the prediction is wrong on 1 of 2 tasks, clearly so (above 0.7) on 1." in words
    assert "DiffusionMTL predicted 48 validation images with 8 noise samples each." in words
    bars = re.findall(r'class="bar (\w+)" style="width:([\d.]+)%"></span></span></td><td>', text)
    assert bars == [("good", "31.2"), ("bad", "7.0")]
    rows = [UncertaintyRow("edge", float("nan"), "entropy, nats", "wrong")]
    data.uncertainty = Uncertainty("DiffusionMTL", 8, 48, rows)
    words = Page(render(data)).text
    assert "wrong on 0 of 1 task." in words and "edge n/a" in words
    data.uncertainty = None
    assert "Is it uncertain" not in render(data) and "noise samples run from dark" not in render(data)


def test_counts_of_labels(data):
    text = Page(render(data)).text
    assert "12 labels on 12 training images" in text and "(12 with 1 label)" in text
    assert len(re.findall(r"M\d+ 0h", render(data))) == 12


def test_empty_report_is_a_page():
    page = Page(render(ReportData("Nothing yet")))
    assert "Nothing yet" in page.text and "Metrics" not in page.text and page.images == []


def test_missing_and_infinite_values(data):
    data.metrics = [
        MetricRow("depth", "rmse", "m", False, {"MTL": float("inf"), "DiffusionMTL": 0.0, "Other": -0.5})
    ]
    data.curves = [
        Chart("Gaps", "step", "y", {"a": ([0, 1, 2], [1, float("nan"), float("inf")]), "b": ([], [])})
    ]
    assert "n/a" in Page(render(data)).text


def test_no_half_page_when_the_disk_is_full(data, tmp_path, monkeypatch):
    path = write_report(tmp_path / "report.html", data)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    data.title = "changed"
    with pytest.raises(OSError, match="report.html: No space left on device"):
        write_report(path, data)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """show(page, *options) -> the document that a headless Chromium makes of the page."""
    found = [path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path]
    if not found:
        pytest.skip("no Chromium here")
    home = tmp_path_factory.mktemp("chromium")

    def run(page: str, *options: str) -> str:
        command = [found[0], "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={home / 'profile'}", "--dump-dom"]
        environment = os.environ | {"HOME": str(home), "TMPDIR": str(home)}
        command += [*options, page]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment).stdout

    if "probe" not in run("data:text/html,<p>probe</p>"):
        pytest.skip(f"{found[0]} shows nothing here")
    return run


def test_chromium_shows_every_picture(data, tmp_path, show):
    # The page forbids scripts; a copy without that rule gets one that says what the browser made of it.
    text = render(data)
    text, opened = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images];
      document.title = JSON.stringify([images.length, images.filter(i => i.complete && i.naturalWidth >
      0).length,
        images.filter(i => i.getBoundingClientRect().width > 20).length,
        document.documentElement.scrollWidth <= innerWidth]); });</script></body>"""
    assert opened == 1
    (tmp_path / "page.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    dom = show((tmp_path / "page.html").as_uri(), "--window-size=1280,900")
    assert "<title>[5,5,5,true]</title>" in dom
