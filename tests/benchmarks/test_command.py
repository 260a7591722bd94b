"""`python -m benchmarks` at toy sizes: what it prints and writes; its pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks import __main__ as command
from benchmarks import clock, memory
from benchmarks.cases import Case
from benchmarks.page import bars_svg, roofline_svg, tables, write_page
from tests.models.cases import small_model


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """Nothing that takes long: ceilings given, memory not measured."""
    monkeypatch.setattr(clock, "compute_rate", lambda precision, device: 1e12)
    monkeypatch.setattr(clock, "copy_rate", lambda device: 1e11)
    monkeypatch.setattr(memory, "peak", lambda case, name, precision, **_: {"peak_mib": 100.0})
    small = Case(options={"width": 32, "backbone_width": 16, "blocks": 1})
    monkeypatch.setattr(command, "standard", lambda device: [small, small.but(batch=2)])
    monkeypatch.setattr(command, "QUICK", small.name)
    monkeypatch.setattr(command.console, "_width", 200)
    monkeypatch.chdir(tmp_path)


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


QUICK = ("--quick", "--size", 64, 64, "--precision", "fp32")


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "bench.jsonl").read_text().splitlines()]


def test_everything(tmp_path, capsys):
    assert run(*QUICK, "--parts", "contenders", "memory", "roofline", "--out", "b") == 0
    out = capsys.readouterr().out
    assert "published, 1 x 64 x 64, 5 tasks" in out and "class pixels" in out
    for words in ("x published", "x expert", "Peak memory", "Roofline", "cross_attention"):
        assert words in out
    rows = rows_of(tmp_path / "b")
    assert {row["part"] for row in rows} == {"contenders", "memory", "roofline"}
    timed = [row for row in rows if row["part"] == "contenders"]
    assert [row["contender"] for row in timed] == ["published", "expert", "dmtl"]
    assert all(row["times_published"] > 0 and row["device"] and row["torch"] for row in timed)
    page = (tmp_path / "b" / "bench.html").read_text()
    assert page.count('<svg class="chart"') == 2
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)  # one file that needs nothing else


def test_a_model_of_ones_own(tmp_path, capsys):
    small_model(width=32, blocks=1).save_pretrained(tmp_path / "run" / "model")
    words = ("--parts", "contenders", "roofline", "--tasks", "semseg", "heat", "--steps", 3, "--batch", 1, 2)
    assert run("run", "--quick", "--size", 40, 56, "--precision", "fp32", *words) == 0
    assert "run, 2 x 40 x 56, 2 tasks, S = 3" in capsys.readouterr().out
    rows = rows_of(tmp_path / "bench")
    assert {tuple(row["tasks"]) for row in rows if row["part"] == "contenders"} == {("semseg", "heat")}


def test_a_baseline_model(tmp_path, capsys):
    """Plain multi-task learning has no chain: the engine alone, no stage of it."""
    small_model(diffusion="none").save_pretrained(tmp_path / "baseline")
    assert run("baseline", "--quick", "--size", 32, 32, "--precision", "fp32") == 0
    out = capsys.readouterr().out
    assert "x published" not in out and "cross_attention" not in out and "Roofline" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--precision", "int8"], "--precision: invalid choice: 'int8'"),
        (["--precision", "tf32"], "--precision must be one of fp32"),
        (["--tasks", "edgy"], "semseg, human_parts, sal, normals, edge for published, got 'edgy'"),
        (["--size", "0", "64"], "--size: must be at least 1, got 0"),
        (["--steps", "-1"], "--steps: must be at least 1, got -1"),
        (["--parts", "speed"], "--parts: invalid choice: 'speed'"),
        (["nowhere"], "nowhere"),
        (["--cases", "large"], "--cases: invalid choice: 'large'"),
        (["six-tasks", "--cases", "six-tasks"], "pass either MODEL or --cases, not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words(tmp_path, capsys, words, expected):
    with pytest.raises(SystemExit) as stopped:
        run("--device", "cpu", *words)
    assert stopped.value.code == 2 and expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "peak", lambda *_, **__: {"error": "killed"})
    assert run(*QUICK, "--parts", "memory") == 1
    assert "killed" in capsys.readouterr().out
    assert (tmp_path / "bench" / "bench.html").is_file()


ROW = {"part": "contenders", "case": "c", "size": [8, 8], "batch": 1, "steps": 2, "tasks": ["edge"]}
ROW |= {"precision": "fp32"}


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


def test_tables_are_by_case():
    """Cases of one batch stay apart; who cannot take part is listed with the reason."""
    skipped = {"contender": "openvino", "skipped": "the package openvino is not installed"}
    timed = {"contender": "dmtl", "median_ms": 5.0, "images_per_s": 200.0, "class_pixels": 0.0125}
    first, second = tables([ROW | skipped, ROW | timed, ROW | timed | {"case": "d"}])
    assert [first.title, second.title] == [f"{name}, 1 x 8 x 8, 1 tasks, S = 2" for name in "cd"]
    assert first.cells[0][2:] == ["-", "-", "-", "-"] and first.cells[1][-1] == "1.25%"
    assert "openvino fp32: skipped, the package openvino is not installed." in first.note


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


def test_page_without_anything(tmp_path):
    assert tables([]) == []
    page = write_page(tmp_path / "b.html", [], {"device": "<b>"}).read_text()
    assert "&lt;b&gt;" in page and "<svg class" not in page
