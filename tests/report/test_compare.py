"""Runs side by side: which of them are one method, what a method is called, pairs, warnings, files."""

import csv
import json
import math
import re
import statistics

import pytest

from dmtl.data import LabelMatrix
from dmtl.errors import ConfigError, DataError
from dmtl.report.html.report import write_page
from dmtl.report.runs.comparison import compare, metric_rows
from dmtl.report.runs.methods import names_of
from dmtl.report.runs.run import LOWER_IS_BETTER, read_run
from dmtl.report.runs.write import write_csv, write_json
from dmtl.tasks import KINDS, KNOWN, make_task

from .test_report import IDS, TASKS, write_run


def sweep(root):
    """Two methods: seeds 0 and 1 of MTL, 0, 1 and 2 of DiffusionMTL."""
    base = [write_run(root / f"m{i}", 40.0 + 5 * i, 1.0, "none", i) for i in range(2)]
    ours = [write_run(root / f"d{i}", 44.0 + i, 0.9, "feature", i) for i in range(3)]
    return base, ours


def rewrite(path, old, new):
    text = (path / "config.toml").read_text()
    assert old in text
    (path / "config.toml").write_text(text.replace(old, new))
    return path


def test_delta_is_taken_over_pairs_of_the_same_seed(tmp_path):
    base, ours = sweep(tmp_path)
    comparison = compare([*base, *ours])
    assert [m.name for m in comparison.methods.values()] == [
        "model.diffusion=none",
        "model.diffusion=feature",
    ]
    assert comparison.methods["Feature"].seeds == [0, 1, 2] and comparison.baseline.runs[0].path == base[0]
    gain = comparison.deltas["Feature"]
    pairs = [(10 + 10 + 0) / 3, (0 + 10 + 0) / 3]  # seed 2 has no partner
    assert gain.paired and gain.seeds == [0, 1] and gain.each == pytest.approx(pairs)
    assert gain.value == pytest.approx((statistics.fmean(pairs), statistics.stdev(pairs)))
    rows = {(row.task, row.metric): row for row in metric_rows(comparison.methods)}
    assert rows["semseg", "mIoU"].values["MTL"] == pytest.approx((42.5, statistics.stdev([40, 45])))
    assert rows["semseg", "mIoU"].values["Feature"] == pytest.approx((45.0, 1.0))
    assert list(metric_rows(comparison.methods)[0].values) == ["MTL", "Feature"] and comparison.warning == ""
    assert [row["basis"] for row in comparison.summary()] == ["baseline", "paired by seed: 0, 1"]


def test_without_a_common_seed_runs_stand_against_the_mean(tmp_path):
    base = [write_run(tmp_path / f"m{i}", 40.0 + 5 * i, 1.0, "none", i) for i in range(2)]
    ours = write_run(tmp_path / "d", 51.0, 1.0, "feature", 7)
    comparison = compare([*base, ours])
    gain = comparison.deltas["Feature"]
    assert not gain.paired and gain.value == pytest.approx(100 * (51 / 42.5 - 1) / 3)
    assert comparison.basis("Feature") == "not paired: 7, relative to MTL's mean"


def test_baseline_by_folder_by_name_and_by_default(tmp_path):
    base, ours = sweep(tmp_path / "runs")
    by_default = compare([tmp_path / "runs"])  # of a folder the first without diffusion
    assert by_default.baseline.name == "model.diffusion=none" and len(by_default.methods["Feature"].runs) == 3
    assert compare([*ours, *base]).baseline.name == "model.diffusion=feature"  # of runs the first
    assert compare([*ours, *base], ["model.diffusion=none"]).baseline.name == "model.diffusion=none"
    assert compare([*ours, *base], [base[1]]).baseline.name == "model.diffusion=none"
    beside = compare(ours, [base[0]])  # not among the runs
    assert len(beside.methods["MTL"].runs) == 1 and beside.deltas["Feature"].seeds == [0]
    with pytest.raises(ConfigError, match="got 'model.diffusion=nnoe' .did you mean 'model.diffusion=none'"):
        compare([*ours, *base], ["model.diffusion=nnoe"])


def test_how_and_where_a_run_was_computed_makes_no_method(tmp_path):
    first, second = (write_run(tmp_path / f"m{i}", 40.0, 1.0, seed=i) for i in range(2))
    rewrite(
        second, "[data]", 'out = "x"\ndevice = "cuda"\n[execution]\nmicro_batch = 2\n[log]\nevery = 7\n[data]'
    )
    rewrite(second, "[data]\n", "[data]\nworkers = 3\n")
    rewrite(second, "[optim]\n", "[optim]\nlr = 1e-3\n")  # the default, written out
    [method] = compare([first, second]).methods.values()
    assert method.seeds == [0, 1] and method.name == "m0"


def test_names_tell_all_that_differs_once():
    settings = [
        {"optim.lr": 0.001, "optim.warmup": 50, "model.width": 96, "model.bias": True, "data.root": "/a/x"},
        {"optim.lr": 0.01, "optim.warmup": 5, "model.width": 96, "model.bias": False, "data.root": "/b/x"},
        {"optim.lr": 0.001, "optim.warmup": 50, "model.width": 8, "model.bias": True, "data.root": "/a/x"},
    ]
    names, remarks = names_of(settings)
    assert names == [
        "model.width=96, model.bias=true",
        "model.width=96, model.bias=false",
        "model.width=8, model.bias=true",
    ]
    assert remarks[0] == "optim.lr differs where model.bias does: 0.001, 0.01."
    assert [remark.split()[0] for remark in remarks] == ["optim.lr", "optim.warmup", "data.root"]
    assert names_of([{"data.root": "/a/x"}, {"data.root": "/b/x"}])[0] == ["data.root=/a/x", "data.root=/b/x"]
    assert names_of([{"data.tasks": ["a", "b"]}, {"data.tasks": None}])[0][1] == "data.tasks=default"


def test_equal_time_runs_of_a_claim_are_one_method_whatever_their_steps(tmp_path):
    for seed, steps in enumerate((33, 35)):
        write_run(tmp_path / f"seed{seed}" / "diffusion", 44.0, 1.0, "feature", seed)
        write_run(tmp_path / f"seed{seed}" / "mtl", 40.0, 1.0, "none", seed)
        write_run(tmp_path / f"seed{seed}" / "mtl_equal_time", 42.0, 1.0, "none", seed, step=steps)
    claim = {"methods": {"mtl": {"time_of": None}, "mtl_equal_time": {"time_of": "diffusion"}}}
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    comparison = compare([tmp_path])
    names = [method.name for method in comparison.methods.values()]
    assert names == [
        "model.diffusion=none, optim.steps=20",
        "model.diffusion=feature, optim.steps=20",
        "model.diffusion=none, optim.steps=equal time",
    ]
    assert comparison.summary()[2]["steps"] == "33 to 35"


def test_an_unfinished_run_counts_with_its_last_evaluation(tmp_path):
    base, ours = write_run(tmp_path / "m", 40.0, 1.0), write_run(tmp_path / "d", 44.0, 0.9, "feature")
    whole = read_run(ours)
    (ours / "metrics.json").unlink()
    rewrite(ours, "steps = 20", "steps = 900")
    open_run = read_run(ours, unfinished=True)
    assert not open_run.finished and open_run.primary == whole.primary and open_run.metrics == whole.metrics
    comparison = compare([base, ours])
    assert comparison.deltas["Feature"].value == pytest.approx(20 / 3)
    assert comparison.remarks[0].endswith("d counts with its last evaluation, at step 20 of 900.")
    assert comparison.summary()[1]["steps"] == "20 (1 unfinished)"
    (ours / "log.jsonl").write_text("")
    left = compare([base, ours])
    assert list(left.methods) == ["MTL"] and re.search(
        "Left out: .*d: has no evaluation yet", left.remarks[0]
    )
    with pytest.raises(DataError, match=f"{ours}: has no run with an evaluation"):
        compare([ours])


def test_an_unfinished_run_knows_whether_its_main_metric_should_rise_or_fall(tmp_path):
    row = {"event": "eval", "step": 5, "metrics": {"heat": {"acc": 0.5, "mae": 2.0}}}
    (tmp_path / "log.jsonl").write_text(json.dumps(row | {"primary": {"heat": ["mae", 2.0, False]}}))
    assert read_run(tmp_path, unfinished=True).primary == {"heat": ("mae", 2.0, False)}


def test_the_first_figure_of_every_metric_is_the_main_one():
    """By which an unfinished run's main metrics are known."""
    tasks = [make_task(name, **({"classes": ["a", "b"]} if name == "semseg" else {})) for name in KNOWN]
    tasks += [
        make_task(f"own_{kind}", kind, **({"classes": ["a", "b"]} if kind == "classes" else {}))
        for kind in KINDS
    ]
    for task in tasks:
        first = next(iter(task.new_metric().compute()))
        assert first == task.primary and (first not in LOWER_IS_BETTER) == task.higher_is_better


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('root = "toy"', 'root = "other"', "data.root is toy in .*m, other in .*d"),
        ("size = [32, 40]", "size = [64, 40]", r"data.size is \[32, 40\] in .*m, \[64, 40\] in .*d"),
        ('root = "toy"', 'root = "scenes"\nval_count = 9', "data.root is"),
        ('labels = "one-label"', 'labels = "full"', "data.labels is one-label in .*m, full in .*d"),
    ],
)
def test_runs_that_are_not_comparable_are_told_in_one_line(tmp_path, old, new, told):
    base, ours = write_run(tmp_path / "m", 40.0, 1.0), write_run(tmp_path / "d", 44.0, 0.9, "feature")
    assert compare([base, ours]).warning == ""
    rewrite(ours, old, new)
    warning = compare([base, ours]).warning
    assert re.match(f"Not comparable: {told}", warning) and "\n" not in warning


def test_other_labels_and_other_tasks_are_told(tmp_path):
    base, ours = write_run(tmp_path / "m", 40.0, 1.0), write_run(tmp_path / "d", 44.0, 0.9, "feature")
    LabelMatrix.one_label(IDS, list(TASKS), 5).write_csv(ours / "labels.csv")
    assert re.search("d used other training labels than .*m.$", compare([base, ours]).warning)
    found = json.loads((base / "metrics.json").read_text())
    del found["metrics"]["edge"], found["primary"]["edge"]
    (base / "metrics.json").write_text(json.dumps(found))
    comparison = compare([base, ours])
    assert "d has other tasks than" in comparison.warning and math.isnan(comparison.deltas["Feature"].value)
    assert any("No Delta_MTL of Feature" in r and "edge pixelF" in r for r in comparison.remarks)
    assert {row.task for row in metric_rows(comparison.methods)} == {"semseg", "depth", "edge"}


def test_folders_that_are_no_runs_are_named(tmp_path):
    run = write_run(tmp_path / "m", 40.0, 1.0)
    (tmp_path / "empty").mkdir()
    for path, text in ((tmp_path / "none", "is not a folder"), (tmp_path / "empty", "has no run in it")):
        with pytest.raises(DataError, match=f"{path}: {text}"):
            compare([run, path])
    with pytest.raises(ConfigError, match="paths must name at least one run"):
        compare([])
    (run / "config.toml").write_text("data = 3\n")
    with pytest.raises(DataError, match="config.toml: data is 3, expected"):
        compare([run])
    (run / "config.toml").write_text("[data\n")
    with pytest.raises(DataError, match="config.toml: not valid TOML"):
        compare([run])
    (run / "config.toml").unlink()
    with pytest.raises(DataError, match="m: has no config.toml"):
        compare([run])


def test_a_seed_that_comes_twice_is_told(tmp_path):
    runs = [write_run(tmp_path / f"m{i}", 40.0 + i, 1.0, seed=4) for i in range(2)]
    comparison = compare([*runs, runs[0]])
    assert len(comparison.methods["MTL"].runs) == 2
    assert comparison.remarks == [f"m0 has several runs with seed 4: {runs[1]} is not counted."]
    assert metric_rows(comparison.methods)[0].values["MTL"] == 40.0


def test_a_figure_that_is_not_finite_is_none_whatever_the_other_seeds_say(tmp_path):
    base, ours = sweep(tmp_path)
    summary = json.loads((ours[1] / "metrics.json").read_text())
    summary["metrics"]["depth"]["rmse"] = float("nan")
    (ours[1] / "metrics.json").write_text(json.dumps(summary))
    log = (ours[1] / "log.jsonl").read_text()
    (ours[1] / "log.jsonl").write_text(log.replace('"rmse": 0.9', '"rmse": NaN'))
    comparison = compare([*base, *ours])
    [rmse] = [row for row in metric_rows(comparison.methods) if row.metric == "rmse"]
    assert math.isnan(rmse.values["Feature"]) and rmse.values["MTL"] == (1.0, 0.0)
    assert any("No Delta_MTL of Feature: " in r and "depth rmse, got nan" in r for r in comparison.remarks)
    write_page(tmp_path / "c.html", comparison)
    assert "n/a" in (tmp_path / "c.html").read_text()


def test_columns_are_in_the_order_of_the_letters(tmp_path):
    """Though the first row, of semseg, has no figure of B."""
    runs = [write_run(tmp_path / name, 40.0, 1.0, seed=i) for i, name in enumerate("abc")]
    for width, run in enumerate(runs):
        rewrite(run, "width = 8", f"width = {8 * (width + 1)}")
    summary = json.loads((runs[1] / "metrics.json").read_text())
    del summary["metrics"]["semseg"], summary["primary"]["semseg"]
    (runs[1] / "metrics.json").write_text(json.dumps(summary))
    comparison = compare(runs)
    assert list(metric_rows(comparison.methods)[0].values) == ["A", "C"]
    write_page(tmp_path / "c.html", comparison)
    heads = re.findall(r'<th scope="col" class="num">(\w)</th>', (tmp_path / "c.html").read_text())
    assert heads == ["A", "B", "C"]


def test_files(tmp_path):
    base, ours = sweep(tmp_path)
    rewrite(ours[0], '"feature"', '"<b>"')
    comparison = compare([*base, *ours])
    for suffix, write in (
        ("html", write_page),
        ("csv", write_csv),
        ("json", write_json),
    ):
        write(tmp_path / f"c.{suffix}", comparison)
    page = (tmp_path / "c.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page.split("</style>")[1] and "<script" not in page
    assert (
        page.count('<svg class="chart"') == 5 and 'class="band fill s2"' in page
    )  # loss, Delta, three tasks
    assert "paired by seed: 1" in page and "Delta_MTL ↑, mean of runs" in page
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    [mine] = [r for r in rows if (r["method"], r["metric"]) == ("model.diffusion=feature", "mIoU")]
    assert float(mine["mean"]) == 45.5 and mine["runs"] == "2" and mine["better"] == "higher"
    assert [r["method"] for r in rows if r["metric"] == "Delta_MTL"] == [
        "model.diffusion=<b>",
        "model.diffusion=feature",
    ]
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["baseline"] == "model.diffusion=none" and len(found["methods"]) == 3
    assert found["methods"][2]["delta"]["each"] == comparison.deltas["Feature"].each
    assert found["methods"][0]["runs"][1]["seed"] == 1 and "delta" not in found["methods"][0]
    assert found["methods"][0]["metrics"]["depth"]["rmse"] == {"mean": 1.0, "spread": 0.0}
