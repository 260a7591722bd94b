"""`dmtl bench` at toy sizes: what it prints and writes, without the source checkout too; its pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from dmtl.bench import clock, contenders, memory, scaling
from dmtl.report.bench import bars_svg, milliseconds, roofline_svg, tables, write_bench


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Nothing that takes long: ceilings given, memory not measured, few points."""
    monkeypatch.setattr(clock, "compute_rate", lambda precision, device: 1e12)
    monkeypatch.setattr(clock, "copy_rate", lambda device: 1e11)
    monkeypatch.setattr(memory, "peak", lambda case, name, precision, **_: {"peak_mib": 100.0})
    monkeypatch.setattr(scaling, "AXES", ("steps", "batch"))
    monkeypatch.setattr("dmtl.cli.bench.SMALL", {"width": 32, "backbone_width": 16, "blocks": 1})


QUICK = ("bench", "--quick", "--size", 64, 64, "--precision", "fp32")


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "bench.jsonl").read_text().splitlines()]


def test_everything(dmtl, tmp_path):
    status, out, err = dmtl(*QUICK, "--parts", "contenders", "memory", "roofline", "scaling", "--out", "b")
    assert (status, err) == (0, "")
    for words in (
        "x published",
        "x expert",
        "Peak memory",
        "Roofline",
        "cross_attention",
        "Growth with steps",
    ):
        assert words in out
    assert "Log-log slope" in out and "(allowed 10 %)" in out
    rows = rows_of(tmp_path / "b")
    assert {row["part"] for row in rows} == {"contenders", "memory", "roofline", "scaling"}
    timed = [row for row in rows if row["part"] == "contenders"]
    assert [row["contender"] for row in timed] == ["published", "expert", "dmtl"]
    assert all(row["times_published"] > 0 and row["device"] and row["torch"] for row in timed)
    page = (tmp_path / "b" / "bench.html").read_text()
    assert page.count('<svg class="chart"') == 1 + 1 + 2
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # one file that needs nothing else


def test_a_model_of_ones_own(dmtl, tmp_path, trained):
    words = (
        "--parts",
        "contenders",
        "roofline",
        "--tasks",
        "semseg",
        "height",
        "--steps",
        3,
        "--batch",
        1,
        2,
    )
    status, out, err = dmtl("bench", trained, "--quick", "--size", 40, 56, "--precision", "fp32", *words)
    assert (status, err) == (0, "")
    assert "2 x 40 x 56, 2 tasks, S = 3" in out
    rows = rows_of(tmp_path / "bench")
    assert {tuple(row["tasks"]) for row in rows if row["part"] == "contenders"} == {("semseg", "height")}


def test_a_baseline_model(dmtl, baseline):
    """Plain multi-task learning has no chain: the engine alone, no stage and no axis of it."""
    status, out, err = dmtl("bench", baseline, "--quick", "--size", 32, 32, "--precision", "fp32")
    assert (status, err) == (0, "")
    assert "x published" not in out and "cross_attention" not in out and "Growth with steps" not in out
    assert "Growth with batch" in out


def test_without_the_checkout(dmtl, monkeypatch):
    monkeypatch.setattr(contenders, "baselines", lambda: None)
    status, out, err = dmtl(*QUICK, "--parts", "contenders")
    assert (status, err) == (0, "")
    assert "are in the source checkout (benchmarks/): no ratios here." in out
    assert "x published" not in out and "dmtl" in out and "images/s" in out


def test_baselines_are_found_beside_the_package(monkeypatch, tmp_path):
    assert set(contenders.baselines().BASELINES) == {"published", "expert"}
    monkeypatch.setattr(contenders.dmtl, "__file__", str(tmp_path / "site-packages" / "dmtl" / "__init__.py"))
    assert contenders.baselines() is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--precision", "int8"], "--precision must be among"),
        (["--tasks", "edgy"], "--tasks must be among semseg, human_parts, sal, normals, edge, got 'edgy'"),
        (["--size", "0", "64"], "--size must be at least 1, got 0 64"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--steps", "-1"], "--steps must be at least 1, got -1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--parts", "speed"], "--parts must be among contenders, memory, roofline, scaling, got 'speed'"),
        (["nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words(dmtl, tmp_path, words, expected):
    status, out, err = dmtl("bench", *words)
    assert (status, out) == (2, "")
    assert expected in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told(dmtl, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "peak", lambda *_, **__: {"error": "killed"})
    status, out, _ = dmtl(*QUICK, "--parts", "memory")
    assert status == 1 and "killed" in out
    assert (tmp_path / "bench" / "bench.html").is_file()


ROW = {"part": "contenders", "size": [8, 8], "batch": 1, "steps": 2, "tasks": ["edge"], "precision": "fp32"}


def test_bars():
    fast, slow = (
        {"contender": n, "median_ms": ms, "times_published": 10 / ms} for n, ms in (("a<b", 5), ("c", 10))
    )
    svg = str(bars_svg([ROW | slow, ROW | fast, ROW | {"contender": "d", "error": "broken"}]))
    lengths = [float(x) for x in re.findall(r'width="([\d.]+)"', svg)]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=1e-3)
    assert "a&lt;b fp32" in svg and "2.00x published" in svg and "broken" not in svg
    ET.fromstring(svg)
    assert bars_svg([ROW | {"contender": "d", "error": "broken"}]) is None


def test_roofline_picture():
    rows = [
        {"stage": "chain", "operator": "convolutions", "flops": 1e9, "bytes": 1e6, "ms": 4.0},
        {"stage": "chain", "operator": "everything else", "flops": 0.0, "bytes": 1e6, "ms": 1.0},
        {"stage": "all", "operator": "all", "flops": 1e9, "bytes": 2e6, "ms": 5.0},
    ]
    rows[-1] |= {"peak_flops": 1e12, "copy_bytes": 1e10, "precision": "fp32"}
    svg = str(roofline_svg(rows))
    ET.fromstring(svg)
    assert svg.count("<circle") == 2  # nothing to draw for what computes nothing
    assert "chain convolutions: 250 GFLOP/s at 1e+03 FLOP/B" in svg


def test_units():
    assert [milliseconds(ms) for ms in (7123.0, 12.34, 0.0351)] == ["7.12 s", "12.3 ms", "35.1 us"]


def test_page_without_anything(tmp_path):
    assert tables([]) == []
    page = write_bench(tmp_path / "b.html", [], {"device": "<b>"}).read_text()
    assert "&lt;b&gt;" in page and "<svg class" not in page
