"""`dmtl report`: runs compared, the paper's tables, pages and files, errors in one line."""

from __future__ import annotations

import json
import re
import shutil

from dmtl.text import fixed

from ..report.test_paper import PASCAL, nyud, stl_runs, write_run
from .conftest import TASKS


def test_runs_compared(dmtl, trained, baseline, tmp_path):
    files = [part for kind in ("html", "csv", "json") for part in (f"--{kind}", tmp_path / f"c.{kind}")]
    files[0] = "--out"
    status, out, err = dmtl("report", baseline, trained, *files)
    assert (status, err) == (0, "")
    assert out.startswith("MTL  model.diffusion=none (baseline)\nFeature  model.diffusion=feature\n")
    assert all(task in out for task in TASKS) and "mIoU ↑" in out and "rmse ↓" in out
    assert re.search(r"│ Delta_MTL +│ % ↑ +│ +│ +[+−]\d+\.\d\d │", out) and "paired by seed: 0" in out
    assert "Not comparable" not in out
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>") and "Feature compared with MTL on data" in page
    assert "data:image/" in page and "No pictures" not in page
    assert (tmp_path / "c.csv").read_text().startswith("method,task,metric,")
    found = json.loads((tmp_path / "c.json").read_text())
    assert fixed(found["methods"][1]["delta"]["mean"], 2, sign=True) in out


def test_report_of_what_is_no_run_is_one_line(dmtl, trained, tmp_path):
    status, out, err = dmtl("report", trained, tmp_path / "nothing")
    assert (status, out) == (2, "")
    assert err == f"dmtl report: {tmp_path}/nothing: is not a folder, expected a run or a folder of runs\n"
    assert "dmtl report: baseline must be a run or one of" in dmtl("report", trained, "--baseline", "x").err


def test_many_methods_come_in_several_tables_beside_the_baseline(dmtl, trained, baseline, tmp_path):
    runs = []
    for steps in range(3, 7):
        runs.append(shutil.copytree(trained, tmp_path / f"{steps}"))
        config = runs[-1] / "config.toml"
        config.write_text(config.read_text().replace("steps = 2\nbeta_start", f"steps = {steps}\nbeta_start"))
    out = dmtl("report", baseline, *runs).out
    assert "\nE  model.diffusion=feature, model.steps=6\n" in out
    assert [re.findall(r"\b[A-E]\b", line) for line in out.splitlines() if line.startswith("┃ task")] == [
        ["A", "B", "C", "D"],
        ["A", "E"],
    ]


def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def test_published_tables_alone(dmtl, monkeypatch):
    wide(monkeypatch)
    status, out, err = dmtl("report", "--paper")
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
    one = dmtl("report", "--paper", "--benchmark", "cityscapes-7").out
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
    status, out, err = dmtl("report", "--paper", tmp_path / "runs", *options)
    assert (status, err) == (0, "")
    told = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, told)) <= 100
    monkeypatch.setattr("dmtl.cli._common.console.width", 40)
    assert re.search(
        r"^Feature .* 51\.50.*[0-9]\n", dmtl("report", "--paper", tmp_path / "runs").out, re.MULTILINE
    )
    assert re.search(r"^Feature +2 +train +51\.50±0\.71 +59\.40±0\.71 ", out, re.MULTILINE)
    assert re.search(r"^MTL +2 +train .* ref\.$", out, re.MULTILINE)
    assert all(file.stat().st_size > 500 and f"wrote {file}" in out for file in files)
    assert json.loads(files[2].read_text())["tables"][0]["benchmark"] == "pascal-context"


def test_wrong_words_are_one_line(dmtl, tmp_path):
    run = write_run(tmp_path / "m", nyud(1.0, 1.0, 1.0))
    stl = stl_runs(tmp_path, nyud(1.0, 1.0, 1.0), labels="full")
    paper = "--paper"
    for words, told in (
        ([], "RUN must name at least one run, got none"),
        ([paper, tmp_path / "none"], f"{tmp_path}/none: is not a folder, expected a run"),
        ([paper, run, "--benchmark", "nyud"], "benchmark must be one of pascal-context, "),
        ([paper, run, "--baseline", stl[0]], "baseline must share data and labels with the other runs"),
        ([paper, "--baseline", run], "--baseline needs RUN, got none"),
        ([paper, run, "--out", "t.tex"], "--out must end in .html, got 't.tex'"),
        ([paper, "--benchmark", "nyud-40"], "--benchmark nyud-40 has no published results, expected RUN"),
        ([paper, "--pictures", "3"], "--pictures cannot be used with --paper"),
        ([paper, "--samples", "0"], "--samples cannot be used with --paper"),
        ([run, "--latex", "t.tex"], "--latex cannot be used without --paper"),
    ):
        status, out, err = dmtl("report", *words)
        assert (status, out) == (2, "") and err.startswith(f"dmtl report: {told}") and err.count("\n") == 1
