"""`dmtl compare` on two finished runs."""

from __future__ import annotations

import json
import re
import shutil

from .conftest import TASKS


def test_compare(dmtl, trained, baseline, tmp_path):
    files = [part for kind in ("html", "csv", "json") for part in (f"--{kind}", tmp_path / f"c.{kind}")]
    files[0] = "--out"
    status, out, err = dmtl("compare", baseline, trained, *files)
    assert (status, err) == (0, "")
    assert out.startswith("A  model.diffusion=none (baseline)\nB  model.diffusion=feature\n")
    assert all(task in out for task in TASKS) and "mIoU ↑" in out and "rmse ↓" in out
    assert re.search(r"│ Delta_MTL +│ % ↑ +│ +│ +[+-]\d+\.\d\d │", out) and "paired by seed: 0" in out
    assert "Not comparable" not in out
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "c.csv").read_text().startswith("method,task,metric,")
    found = json.loads((tmp_path / "c.json").read_text())
    assert f"{found['methods'][1]['delta']['mean']:+.2f}" in out


def test_compare_of_what_is_no_run_is_one_line(dmtl, trained, tmp_path):
    status, out, err = dmtl("compare", trained, tmp_path / "nothing")
    assert (status, out) == (2, "")
    assert err == f"dmtl compare: {tmp_path}/nothing: is no folder, expected a run or a folder of runs\n"
    assert "--baseline must be a run or one of" in dmtl("compare", trained, "--baseline", "x").err


def test_many_methods_come_in_several_tables_beside_the_baseline(dmtl, trained, baseline, tmp_path):
    runs = []
    for steps in range(3, 7):
        runs.append(shutil.copytree(trained, tmp_path / f"{steps}"))
        config = runs[-1] / "config.toml"
        config.write_text(config.read_text().replace("steps = 2\nbeta_start", f"steps = {steps}\nbeta_start"))
    out = dmtl("compare", baseline, *runs).out
    assert "\nE  model.diffusion=feature, model.steps=6\n" in out
    assert [re.findall(r"\b[A-E]\b", line) for line in out.splitlines() if line.startswith("┃ task")] == [
        ["A", "B", "C", "D"],
        ["A", "E"],
    ]
