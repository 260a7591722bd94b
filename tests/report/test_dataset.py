"""The page of a data set: whole in one file, every label shown or said to be missing, true figures."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from dmtl.data.folder.dataset import Folder
from dmtl.data.loading.wrappers import Subset
from dmtl.report.html.dataset import dataset_report
from dmtl.text import number
from tests.data.conftest import arrays, describe, folder  # noqa: F401

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def page(folder, tmp_path):  # noqa: F811
    """Writes the page of the folder's training split and gives its text."""

    def write(**options) -> str:
        return dataset_report(Folder(folder, "train"), tmp_path / "page.html", **options).read_text()

    return write


def test_one_file_with_everything(page):
    """No script, no network; each image with five labels, two of which do not exist."""
    text = page()
    assert text.startswith("<!doctype html>") and "<script" not in text and "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 1 + 3 + 3 * 5 - 2 and all(source.startswith("data:") for source in sources)
    assert text.count('<span class="none">no label</span>') == 2
    assert [text.count(f"<figcaption>{id}</figcaption>") for id in ("a", "b", "c/d")] == [1, 1, 1]
    assert "13 labels on 3 images" in text and "(2 with 4 labels, 1 with 5 labels)" in text


def test_shares_of_classes_are_true(page):
    """Over a and c/d, which have semseg; the largest class first."""
    ids = np.concatenate([arrays(0)["semseg"], arrays(2)["semseg"]])
    shares = {name: (ids == i).sum() / (ids != 255).sum() for i, name in enumerate(("sky", "road", "car"))}
    panel = page().split("<h3>semseg ")[1].split("<h3>")[0]
    shown = re.findall(r'title="(\w+): ([\d.]+) % of the known pixels, in 2 of 2 labels"', panel)
    assert shown == [(n, f"{100 * shares[n]:.1f}") for n in sorted(shares, key=shares.get, reverse=True)]
    assert f"2 labels, {100 * (ids == 255).mean():.1f}&#8239;% of their pixels unknown" in panel
    assert "Not seen" not in panel


def test_ranges_of_numbers_are_true(page):
    steps = np.stack([arrays(n)["depth"] for n in (1, 2)])
    panel = page().split("<h3>depth ")[1].split("<h3>")[0]
    least, greatest = steps[steps > 0].min() * 0.01, steps.max() * 0.01
    assert f"minimum {number(least, 3)}, maximum {number(greatest, 3)}." in panel
    assert panel.count("<rect") >= 40  # a histogram


def test_what_was_never_seen_is_said(page, folder):  # noqa: F811
    for id in ("a", "c/d"):
        Image.fromarray(np.ones((24, 32), np.uint8)).save(folder / "semseg" / f"{id}.png")
        (folder / "depth" / f"{id}.png").unlink(missing_ok=True)
    (folder / "depth" / "b.png").unlink()
    text = page()
    assert "Not seen: sky, car." in text
    assert "no label that could be read" in text.split("<h3>depth ")[1]


def test_damaged_samples_are_named_and_the_rest_is_shown(page, folder):  # noqa: F811
    (folder / "images" / "b.png").write_bytes(b"damaged")
    text = page()
    assert "Measured on 2 of 3 images" in text and "<figcaption>b<" not in text
    assert text.count(f"Cannot be read: {folder}/images/b.png: ") == 1


def test_names_are_text(page, folder):  # noqa: F811
    describe(folder, name=HOSTILE, tasks={"semseg": {"kind": "classes", "classes": ["a", HOSTILE, "c"]}})
    text = page()
    assert HOSTILE not in text and text.count("&lt;script&gt;") >= 3


def test_counts_can_be_chosen(page, folder, tmp_path):  # noqa: F811
    text = page(count=1, measured=2, workers=2)
    assert text.count('class="tiles"') == 1 and "Measured on 2 of 3 images" in text
    describe(folder, evaluation={"frame": [30, 40], "max_dist": 0.01})
    one = dataset_report(Subset(Folder(folder, "train"), [1]), tmp_path / "one.html").read_text()
    assert "<dd>30 × 40</dd>" in one and "<dd>0.01 of the diagonal</dd>" in one
