"""`dmtl table`: published tables alone, tables of runs, files, errors in one line."""

from __future__ import annotations

import json
import re

from ..report.test_table import PASCAL, nyud, stl_runs, write_run


def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def test_published_tables_alone(dmtl, monkeypatch):
    wide(monkeypatch)
    status, out, err = dmtl("table")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    for line in (
        r"^STL +\[1\] +50.34 +59.05 +77.43 +16.59 +64.40 +-$",
        r"^MTL† +\[2\] +49.71 .*−2.85$",
        r"^Prediction +\[1\] .*\+3.23$",
        r"^Feature +\[1\] +57.78 .*\+3.64$",
        r"^Prediction +\[\d\] +n\.r\. ",
    ):
        assert re.search(line, out, re.MULTILINE), line
    assert "dagger" not in out and "(†: no page that prints it was found)" in out
    one = dmtl("table", "--benchmark", "cityscapes-7").out
    assert "Cityscapes, 7 classes" in one and "PASCAL" not in one


def test_runs_beside_published_figures_fit_the_terminal(dmtl, monkeypatch, tmp_path):
    wide(monkeypatch)
    figures = {"semseg": 50.3, "human_parts": 58.2, "sal": 77.1, "normals": 16.4, "edge": 30.0}
    for seed in (0, 1):
        for name in ("none", "prediction", "feature"):
            write_run(
                tmp_path / "runs" / f"{name}{seed}",
                {task: value + seed + len(name) / 10 for task, value in figures.items()},
                name,
                seed,
                root="pascal",
                classes=21,
                primaries=PASCAL | {"edge": ("odsF_seism", True), "sal": ("maxF_paper", True)},
            )
    files = [tmp_path / f"t.{kind}" for kind in ("html", "csv", "json", "tex")]
    options = [
        word for pair in zip(("--out", "--csv", "--json", "--latex"), files, strict=True) for word in pair
    ]
    status, out, err = dmtl("table", tmp_path / "runs", *options)
    assert (status, err) == (0, "")
    told = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, told)) <= 100
    monkeypatch.setattr("dmtl.cli._common.console.width", 40)
    assert re.search(r"^Feature .* 51\.50.*[0-9]\n", dmtl("table", tmp_path / "runs").out, re.MULTILINE)
    assert re.search(r"^Feature +2 +train +51\.50±0\.71 +59\.40±0\.71 ", out, re.MULTILINE)
    assert re.search(r"^MTL +2 +train .* ref\.$", out, re.MULTILINE)
    assert all(file.stat().st_size > 500 and f"wrote {file}" in out for file in files)
    assert json.loads(files[2].read_text())["tables"][0]["benchmark"] == "pascal-context"


def test_wrong_words_are_one_line(dmtl, tmp_path):
    run = write_run(tmp_path / "m", nyud(1.0, 1.0, 1.0))
    stl = stl_runs(tmp_path, nyud(1.0, 1.0, 1.0), labels="full")
    for words, told in (
        ([tmp_path / "none"], f"{tmp_path}/none: is no folder, expected a run or a folder of runs"),
        ([run, "--benchmark", "nyud"], "--benchmark must be one of pascal-context, "),
        ([run, "--reference", stl[0]], f"--reference must share data and labels with RUN, got {stl[0]}"),
        (["--reference", run], "--reference needs RUN, got none"),
        ([run, "--out", "t.tex"], "--out must end in .html, got 't.tex'"),
        (["--benchmark", "nyud-40"], "--benchmark nyud-40 has no published figures, expected RUN"),
    ):
        status, out, err = dmtl("table", *words)
        assert (status, out) == (2, "") and err.startswith(f"dmtl table: {told}") and err.count("\n") == 1
