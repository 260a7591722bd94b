"""Tables of results: which run goes where, figures over seeds, Delta_MTL, remarks, files.

Run folders are written by hand; every expected figure is worked out here, from the formula."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import statistics
import subprocess

import pytest

from dmtl.errors import ConfigError, DataError
from dmtl.report.paper import write
from dmtl.report.paper.build import published_tables, tables

IDS = [f"i{n}" for n in range(6)]
NYUD = {"semseg": ("mIoU", True), "depth": ("abs_err", False), "normals": ("mean", False)}
PASCAL = {
    "semseg": ("mIoU", True),
    "human_parts": ("mIoU", True),
    "sal": ("maxF", True),
    "normals": ("mean", False),
    "edge": ("pixelF", True),
}
KINDS = {"semseg": "classes", "human_parts": "classes", "sal": "binary", "edge": "binary"}
KINDS |= {"normals": "unit_vector", "depth": "scalar"}
CLASSES = {"semseg": 13, "human_parts": 7}


def write_run(
    path, figures, diffusion="none", seed=0, root="nyud13", labels="one-label", classes=13, primaries=NYUD,
    more=None, mtpsl=0.0, optim="", table=None,
):  # fmt: skip
    """A run folder with one figure a task, as `dmtl train` leaves it; `more`: {task: {metric: figure}};
    `table`: {task: ids} of labels.csv, default: image i has task i mod T."""
    (path / "model").mkdir(parents=True)
    metrics = {
        task: {primaries[task][0]: value} | (more or {}).get(task, {}) for task, value in figures.items()
    }
    primary = {task: [primaries[task][0], value, primaries[task][1]] for task, value in figures.items()}
    (path / "metrics.json").write_text(json.dumps({"step": 9, "metrics": metrics, "primary": primary}))
    (path / "config.toml").write_text(
        f'[data]\nroot = "{root}"\nlabels = "{labels}"\n[model]\ndiffusion = "{diffusion}"\n'
        f"[optim]\nseed = {seed}\n{optim}" + (f"objectives = {{mtpsl = {mtpsl}}}\n" if mtpsl else "")
    )
    counts = CLASSES | {"semseg": classes}
    specs = [
        {"name": task, "kind": KINDS[task]}
        | ({"classes": [f"c{n}" for n in range(counts[task])]} if task in counts else {})
        for task in figures
    ]
    (path / "model" / "config.json").write_text(json.dumps({"tasks": specs}))
    names = list(primaries)
    table = table or {task: IDS[names.index(task) :: len(names)] for task in names}
    lines = [",".join([i, *(str(int(i in table[task])) for task in figures)]) for i in IDS]
    (path / "labels.csv").write_text("\n".join([f"id,{','.join(figures)}", *lines]) + "\n")
    return path


def write_eval(path, metrics, **protocol):
    """What `dmtl eval --json` leaves beside a run; the first metric of a task is its main one."""
    primary = {task: [next(iter(m)), next(iter(m.values())), True] for task, m in metrics.items()}
    about = {
        "data": "nyud13",
        "split": "val",
        "images": 654,
        "frame": None,
        "boundaries": None,
        "max_dist": None,
    }
    whole = {"metrics": metrics, "primary": primary, "protocol": about | protocol}
    (path / "eval.json").write_text(json.dumps(whole))


def nyud(semseg, depth, normals):
    return {"semseg": semseg, "depth": depth, "normals": normals}


def gain(ours, theirs):
    """Delta_MTL of NYUD by its formula: higher mIoU and lower errors are better."""
    (a, b, c), (x, y, z) = ours, theirs
    return 100 / 3 * ((a - x) / x - (b - y) / y - (c - z) / z)


def stl_runs(root, figures, seed=0, **options):
    """A single-task run for each task."""
    return [
        write_run(root / f"stl-{task}-{seed}", {task: value}, seed=seed, **options)
        for task, value in figures.items()
    ]


def measured(table, method):
    [row] = [row for row in table.measured if row.method == method]
    return row


def said(table, text):
    return any(text in remark for remark in table.remarks)


# -- which run goes where -------------------------------------------------------------------------------


def test_benchmark_from_tasks_and_class_counts(tmp_path):
    pascal = dict.fromkeys(PASCAL, 10.0)
    cases = {
        "pascal-context": (pascal, 21, PASCAL),
        "nyud-13": (nyud(40, 0.5, 25), 13, NYUD),
        "nyud-40": (nyud(40, 0.5, 25) | {"edge": 70.0}, 40, NYUD | {"edge": ("pixelF", True)}),
        "cityscapes-7": ({"semseg": 70.0, "depth": 0.01}, 7, NYUD),
        "cityscapes-19": ({"semseg": 60.0, "depth": 0.01}, 19, NYUD),
    }
    for name, (figures, classes, primaries) in cases.items():
        write_run(tmp_path / name, figures, root=f"data/{name}", classes=classes, primaries=primaries)
    write_run(tmp_path / "x", {"semseg": 60.0, "depth": 0.01}, root="data/street", classes=11)
    found = tables([tmp_path])
    names = ["pascal-context", "nyud-13", "nyud-40", "cityscapes-7", "cityscapes-19"]
    assert [table.benchmark.name for table in found[:-1]] == names
    assert (found[-1].benchmark, found[-1].title, found[-1].heading) == (
        None,
        "street",
        "street, one label per image",
    )
    forced = tables([tmp_path / "x"], benchmark="cityscapes-7")
    assert [table.benchmark.name for table in forced] == ["cityscapes-7"]
    depth = {t.benchmark.name: t.columns[1].metric for t in found[1:-1]}
    expected = ["abs_err", "rmse", "abs_err", "abs_err"]
    assert depth == dict(zip(names[1:], expected, strict=True))


def test_runs_on_several_sources_are_a_table_of_their_own(tmp_path):
    for name, sources in (("a", ("rooms", "street")), ("b", ("rooms", "forest"))):
        run = write_run(tmp_path / name, nyud(40, 0.5, 25), root="", classes=11)
        config = (run / "config.toml").read_text()
        listed = ", ".join(f'{{root = "data/{source}", name = "{source}"}}' for source in sources)
        (run / "config.toml").write_text(config.replace('root = ""', f"sources = [{listed}]"))
    found = tables([tmp_path])
    assert sorted(table.heading for table in found) == [
        "rooms+forest, one label per image", "rooms+street, one label per image",
    ]  # fmt: skip


def test_the_raw_release_of_cityscapes_is_a_table_of_its_own(tmp_path, monkeypatch):
    """Its depth is disparity in pixels; that of the arrays is 65,535 / 256 times smaller."""
    figures = {"semseg": 60.0, "depth": 0.01}
    write_run(tmp_path / "array", figures, root="arrays", classes=19)
    monkeypatch.setitem(globals(), "IDS", [f"bad-koeln/bad-koeln_{n:06}_000019" for n in range(6)])
    for name, diffusion in (("mtl", "none"), ("feature", "feature")):
        write_run(tmp_path / name, figures | {"depth": 2.5}, diffusion, root="raw", classes=19)
    found = {table.benchmark.name: table for table in tables([tmp_path])}
    assert list(found) == ["cityscapes-raw", "cityscapes-19"]
    assert [row.values["depth"] for row in found["cityscapes-19"].measured] == [0.01]
    assert [row.values["depth"] for row in found["cityscapes-raw"].measured] == [2.5, 2.5]
    assert measured(found["cityscapes-raw"], "Feature").delta.value == pytest.approx(0.0)
    assert said(found["cityscapes-raw"], "disparity") and not said(found["cityscapes-19"], "disparity")


def test_class_counts_without_a_model_are_those_of_the_metrics(tmp_path):
    more = {"semseg": {f"IoU/c{n}": 1.0 for n in range(13)}}
    run = write_run(tmp_path / "m", nyud(40, 0.5, 25), more=more)
    (run / "model" / "config.json").unlink()
    assert tables([run])[0].benchmark.name == "nyud-13"


def test_methods_from_the_configuration(tmp_path):
    figures = nyud(40.0, 0.5, 25.0)
    stl_runs(tmp_path, figures)
    write_run(tmp_path / "m", figures)
    write_run(tmp_path / "x", figures, mtpsl=1.0)
    write_run(tmp_path / "p", figures, "prediction")
    write_run(tmp_path / "f", figures, "feature")
    [table] = tables([tmp_path])
    assert [row.method for row in table.measured] == ["STL", "MTL", "MTPSL", "Prediction", "Feature"]
    order = [(row.method, row.published) for row in table.rows][:8]
    assert order[:2] == [("STL", True), ("STL", False)] and order[6:] == [
        ("Prediction", True),
        ("Prediction", False),
    ]


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        (None, "one-label"),
        ({"semseg": IDS[:4], "depth": IDS[2:], "normals": IDS[:1]}, "random-labels"),
        (dict.fromkeys(NYUD, IDS), "full"),
    ],
)
def test_setting_counted_from_the_labels_of_all_runs_of_a_table(tmp_path, table, setting):
    """Single-task runs know one column each; together they tell."""
    stl_runs(tmp_path, nyud(40.0, 0.5, 25.0), labels="some.csv", table=table)
    assert [t.setting for t in tables([tmp_path])] == [setting]


def test_settings_are_tables_of_their_own(tmp_path):
    for labels in ("full", "random-labels", "one-label"):
        write_run(tmp_path / labels, nyud(40.0, 0.5, 25.0), labels=labels)
    assert [table.setting for table in tables([tmp_path])] == ["one-label", "random-labels", "full"]


def test_one_column_of_a_label_table_does_not_tell_the_setting(tmp_path):
    run = write_run(tmp_path / "s", {"semseg": 40.0}, labels="dir/mine.csv")
    [table] = tables([run], benchmark="nyud-13")
    assert (
        table.setting == "labels of mine.csv" and table.measured and not any(r.published for r in table.rows)
    )


# -- figures and Delta_MTL ------------------------------------------------------------------------------


def test_figures_over_seeds_and_delta_paired_by_seed(tmp_path):
    stl = {0: (44.0, 0.50, 26.0), 1: (46.0, 0.48, 25.0)}
    feature = {0: (45.0, 0.49, 25.0), 1: (47.0, 0.51, 25.5), 2: (90.0, 0.1, 5.0)}
    for seed, figures in stl.items():
        stl_runs(tmp_path, nyud(*figures), seed)
    for seed, figures in feature.items():
        write_run(tmp_path / f"f{seed}", nyud(*figures), "feature", seed)
    [table] = tables([tmp_path])
    row, reference = measured(table, "Feature"), measured(table, "STL")
    assert table.reference is reference and reference.delta is None
    assert reference.values["semseg"] == pytest.approx((45.0, math.sqrt(2)))
    assert row.values["depth"] == pytest.approx((1.1 / 3, statistics.stdev([0.49, 0.51, 0.1])))
    pairs = [gain(feature[seed], stl[seed]) for seed in (0, 1)]  # seed 2 has no partner
    assert row.delta.paired and row.delta.seeds == [0, 1] and row.delta.each == pytest.approx(pairs)
    assert row.delta.value == pytest.approx((statistics.fmean(pairs), statistics.stdev(pairs)))


def test_without_a_common_seed_delta_is_against_the_mean(tmp_path):
    for seed, figures in {0: (44.0, 0.50, 26.0), 1: (46.0, 0.48, 25.0)}.items():
        stl_runs(tmp_path, nyud(*figures), seed)
    write_run(tmp_path / "f", nyud(45.0, 0.5, 25.0), "feature", 7)
    [table] = tables([tmp_path])
    delta = measured(table, "Feature").delta
    assert not delta.paired and delta.each == pytest.approx([gain((45.0, 0.5, 25.0), (45.0, 0.49, 25.5))])
    assert said(table, "not paired by seed")


def test_without_single_task_runs_delta_is_against_the_multi_task_baseline_and_says_so(tmp_path):
    write_run(tmp_path / "m", nyud(40.0, 0.5, 25.0))
    write_run(tmp_path / "f", nyud(44.0, 0.45, 26.0), "feature")
    [table] = tables([tmp_path])
    assert table.reference.method == "MTL" and said(table, "is relative to MTL; there are no STL runs.")
    assert measured(table, "Feature").delta.value == pytest.approx((10 + 10 - 4) / 3)
    [alone] = tables([tmp_path / "f"])
    assert alone.reference is None and said(alone, "have no Delta_MTL") and alone.measured[0].delta is None
    assert not said(table, " published.")  # a Delta against MTL stands beside no published one


def test_reference_from_elsewhere(tmp_path):
    stl_runs(tmp_path / "stored", nyud(50.0, 0.5, 20.0))
    write_run(tmp_path / "m", nyud(40.0, 0.5, 25.0))
    feature = write_run(tmp_path / "f", nyud(55.0, 0.45, 18.0), "feature")
    [table] = tables([feature], baseline=[tmp_path / "stored"])
    assert table.reference.method == "STL" and measured(table, "Feature").delta.value == pytest.approx(10.0)
    assert said(table, "Feature: Delta_MTL +10.00 here, −2.26 published.")
    [table] = tables([feature, tmp_path / "stored"], baseline=[tmp_path / "m"])  # although there is STL
    assert table.reference.method == "MTL"
    other = write_run(tmp_path / "o", nyud(1.0, 1.0, 1.0), labels="full")
    with pytest.raises(
        ConfigError, match=f"baseline must share data and labels with the other runs, got {other}"
    ):
        tables([feature], baseline=[other])


def test_delta_over_a_part_of_the_tasks_is_marked(tmp_path):
    stl_runs(tmp_path, {"semseg": 40.0, "normals": 25.0})
    write_run(tmp_path / "f", nyud(44.0, 0.45, 26.0), "feature")
    [table] = tables([tmp_path])
    row = measured(table, "Feature")
    assert row.delta.tasks == ["semseg", "normals"] and row.delta.value == pytest.approx((10 - 4) / 2)
    assert table.cells(row)[-1].mean == "+3.00*"
    assert said(table, "* Delta_MTL of Feature is over 2 of 3 tasks, without depth.")
    assert not said(table, " published.")


def test_configurations_are_rows_and_single_tasks_of_several_configurations_one(tmp_path):
    write_run(tmp_path / "a", nyud(40.0, 0.5, 25.0), "feature", optim="lr = 0.001\n")
    write_run(tmp_path / "b", nyud(41.0, 0.5, 25.0), "feature", optim="lr = 0.01\n")
    write_run(tmp_path / "s", {"semseg": 40.0}, optim="steps = 10\n")
    write_run(tmp_path / "d", {"depth": 0.5}, optim="steps = 30\n")
    write_run(tmp_path / "n", {"normals": 25.0}, optim="steps = 30\ntask_weights = {normals = 2.0}\n")
    [table] = tables([tmp_path])
    names = [row.name for row in table.measured]
    assert names == ["STL", "Feature (optim.lr=0.001)", "Feature (optim.lr=0.01)"]
    assert set(measured(table, "STL").values) == set(NYUD)
    assert [row.method for row in table.best(table.columns[0], False)] == ["Feature"]


def test_of_a_seed_that_comes_twice_the_first_counts(tmp_path):
    write_run(tmp_path / "a", nyud(40.0, 0.5, 25.0), seed=3)
    write_run(tmp_path / "b", nyud(50.0, 0.5, 25.0), seed=3)
    [table] = tables([tmp_path])
    assert measured(table, "MTL").values["semseg"] == 40.0
    assert said(table, f"MTL has several runs with seed 3: {tmp_path}/b is not counted.")


# -- scored how -----------------------------------------------------------------------------------------


def test_boundaries_are_odsf_or_nothing_and_saliency_is_the_papers_variant(tmp_path):
    figures = {"semseg": 50.0, "human_parts": 55.0, "sal": 80.0, "normals": 16.0, "edge": 30.0}
    options = {"root": "pascal", "classes": 21, "primaries": PASCAL, "more": {"sal": {"maxF_paper": 76.0}}}
    mtl = write_run(tmp_path / "m", figures, **options)
    feature = write_run(tmp_path / "f", figures, "feature", **options)
    scored = {task: {PASCAL[task][0]: value} for task, value in figures.items() if task != "edge"}
    scored |= {"sal": {"maxF": 80.5, "maxF_paper": 77.0}, "edge": {"odsF_seism": 64.0, "pixelF": 30.0}}
    write_eval(
        feature, scored, data="pascal", images=5105, frame=[512, 512], boundaries="seism", max_dist=0.0075
    )
    [table] = tables([mtl, feature])
    assert "edge" not in measured(table, "MTL").values  # its pixelF is something else
    assert measured(table, "Feature").values["edge"] == 64.0
    assert measured(table, "Feature").values["sal"] == 77.0 and measured(table, "MTL").values["sal"] == 76.0
    assert said(table, "No odsF of MTL") and said(table, "over 4 of 5 tasks, without edge")
    files = "results of Feature are from eval.json; those of MTL are from metrics.json."
    assert said(table, f"Scored differently: {files}")
    assert said(table, "Runs of MTL were scored without a frame") and not said(table, "Feature were scored")
    [exact] = tables([mtl, feature], exact=True)
    assert measured(exact, "Feature").values["sal"] == 80.5 and exact.columns[2].label == "exact maxF"
    assert not any(
        "sal" in row.values for row in exact.rows if row.published
    )  # nobody published an exact one


def test_rows_scored_differently_are_told(tmp_path):
    first, second = (
        write_run(tmp_path / "m", nyud(1, 1, 1)),
        write_run(tmp_path / "f", nyud(1, 1, 1), "feature"),
    )
    metrics = {"semseg": {"mIoU": 40.0}, "depth": {"abs_err": 0.5}, "normals": {"mean": 25.0}}
    write_eval(first, metrics)
    write_eval(second, metrics)
    [table] = tables([tmp_path])
    assert said(table, "Results of MTL, Feature are from eval.json.")
    assert not said(table, "Scored differently")
    assert measured(table, "MTL").values["semseg"] == 40.0  # not metrics.json's 1
    write_eval(second, metrics, frame=[288, 384], images=10, data="else/where")
    [table] = tables([tmp_path])
    assert said(table, "Scored differently: the frame is none (MTL), 288 × 384 (Feature).")
    assert said(table, "the number of images is 654 (MTL), 10 (Feature)")
    assert said(table, "Runs of Feature were scored on 10 images; published results cover 654.")
    assert said(table, "Feature was trained on nyud13 and scored on else/where.")
    write_eval(
        second, metrics, boundaries="seism", max_dist=0.011
    )  # MTL's has no boundaries: nothing to compare
    assert not said(tables([tmp_path])[0], "Scored differently")
    write_eval(first, metrics, boundaries="seism", max_dist=0.0075)
    assert said(tables([tmp_path])[0], "Scored differently: max_dist is 0.0075 (MTL), 0.011 (Feature).")


def test_other_labels_are_told(tmp_path):
    write_run(tmp_path / "m", nyud(1.0, 1.0, 1.0))
    write_run(tmp_path / "n", nyud(1.0, 1.0, 1.0), "prediction")
    [table] = tables([tmp_path])
    assert not said(table, "other images") and said(table, "Measured rows learned from newly chosen labels")
    swapped = {"semseg": IDS[1::3], "depth": IDS[0::3], "normals": IDS[2::3]}
    write_run(tmp_path / "f", nyud(1.0, 1.0, 1.0), "feature", table=swapped)
    [table] = tables([tmp_path])
    assert said(table, "Feature was trained on semseg labels of other images than MTL.")
    assert not said(table, "Feature was trained on normals")


def test_damaged_files_are_named(tmp_path):
    run = write_run(tmp_path / "m", nyud(1.0, 1.0, 1.0))
    for text, told in (("{", "not valid JSON"), ('{"steps": []}', "not as `dmtl eval --json` writes it")):
        (run / "eval.json").write_text(text)
        with pytest.raises(DataError, match=f"{run}/eval.json: {told}"):
            tables([run])
    write_eval(run, {"semseg": {"mIoU": 1.0}})
    found = json.loads((run / "eval.json").read_text())
    (run / "eval.json").write_text(json.dumps(found | {"protocol": 3}))
    with pytest.raises(DataError, match="eval.json: protocol is 3, expected an object"):
        tables([run])
    with pytest.raises(DataError, match="nothing: is not a folder"):
        tables([tmp_path / "nothing"])


# -- other data sets and files --------------------------------------------------------------------------


def test_any_other_data_set_has_its_own_main_metrics(tmp_path):
    primaries = {"semseg": ("mIoU", True), "edge": ("pixelF", True), "depth": ("rmse", False)}
    figures = {"semseg": 30.0, "edge": 20.0, "depth": 1.5}
    options = {"root": "some/camvid", "classes": 11, "primaries": primaries}
    write_run(tmp_path / "m", figures, **options)
    feature = write_run(tmp_path / "f", figures, "feature", **options)
    [table] = tables([tmp_path])
    columns = [(c.task, c.metric, c.higher_is_better, c.digits) for c in table.columns]
    assert columns == [("semseg", "mIoU", True, 2), ("edge", "pixelF", True, 2), ("depth", "rmse", False, 4)]
    assert table.title == "camvid" and not any(row.published for row in table.rows)
    write_eval(
        feature,
        {"semseg": {"mIoU": 31.0}, "edge": {"odsF_seism": 50.0}, "depth": {"rmse": 1.0}},
        data="camvid",
    )
    [table] = tables([tmp_path])
    assert [c.metric for c in table.columns] == ["mIoU", "odsF_seism", "rmse"]
    assert "edge" not in measured(table, "MTL").values


def test_files(tmp_path):
    for seed, extra in ((0, 0.0), (1, 2.0)):
        stl_runs(tmp_path / "r", nyud(44.0 + extra, 0.5, 25.0), seed)
        write_run(tmp_path / "r" / f"f{seed}", nyud(48.4 + extra * 1.1, 0.45, 22.5), "feature", seed)
    found = tables([tmp_path / "r"])
    for kind, write_file in (
        ("html", write.write_page),
        ("csv", write.write_csv),
        ("json", write.write_json),
        ("tex", write.write_latex),
    ):
        write_file(tmp_path / f"t.{kind}", found)
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    ours = [row for row in rows if (row["method"], row["published"]) == ("Feature", "0")]
    assert [row["metric"] for row in ours] == ["mIoU", "abs_err", "mean", "Delta_MTL"]
    assert float(ours[0]["mean"]) == pytest.approx(49.5) and ours[0]["seeds"] == "2"
    assert float(ours[3]["mean"]) == pytest.approx(10.0) and float(ours[3]["spread"]) == pytest.approx(
        0.0, abs=1e-9
    )
    assert ours[1]["better"] == "lower" and ours[0]["from"] == "metrics.json"
    [table] = json.loads((tmp_path / "t.json").read_text())["tables"]
    assert (table["benchmark"], table["setting"], table["reference"]) == ("nyud-13", "one-label", "STL")
    [row] = [row for row in table["rows"] if row["name"] == "Feature" and not row["published"]]
    assert row["delta"]["each"] == pytest.approx([10.0, 10.0]) and row["delta"]["paired"] is True
    assert row["results"]["semseg"]["spread"] == pytest.approx(2.2 / math.sqrt(2)) and len(row["runs"]) == 2
    tex = (tmp_path / "t.tex").read_text()
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert (
        len({line.count(" & ") for line in body}) == 1
        and tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    )
    assert r"Feature & ours, 2 seeds & $\mathbf{49.50}_{\pm1.56}$ & $\mathbf{0.4500}_{\pm0.0000}$" in tex
    assert r"STL & [1] & $45.28$" in tex and r"human\_parts" not in tex
    assert re.search(r"^STL & ours, 2 seeds & .* & ref\. \\\\$", tex, re.MULTILINE)
    assert re.search(r"^\[1\] TPKR .*\\par$", tex.partition(r"\end{tabular}")[2], re.MULTILINE)
    page = (tmp_path / "t.html").read_text()
    assert page.startswith("<!doctype html>") and "49.50" in page and "n.r." in page and "<script" not in page
    assert "http://" not in page and "https://" not in page


def test_latex_escapes_what_it_must(tmp_path):
    write_run(tmp_path / "m", {"semseg": 1.0, "human_parts": 2.0}, root="a_b%c", primaries=PASCAL)
    write.write_latex(tmp_path / "t.tex", tables([tmp_path / "m"]))
    tex = (tmp_path / "t.tex").read_text()
    assert r"\caption{a\_b\%c, one label per image}" in tex and r" & human\_parts & " in tex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    """Daggers, lost figures, seeds, no figure, Delta_MTL over a part of the tasks, odd letters."""
    for seed in (0, 1):
        stl_runs(tmp_path / "r", nyud(44.0, 0.5, 25.0 + seed), seed)
        write_run(tmp_path / "r" / f"f{seed}", nyud(48.0 + seed, 0.45, math.nan), "feature", seed)
        write_run(
            tmp_path / "r" / f"p{seed}", nyud(-0.5, 0.45, 22.5), "prediction", seed, labels="random-labels"
        )
    write_run(
        tmp_path / "r" / "x",
        {"semseg": 1.0, "human_parts": 2.0},
        root=r"a_b%c#d&e~f^g\\h<i>j|{k}$",
        primaries=PASCAL,
    )
    write.write_latex(tmp_path / "t.tex", [*tables([tmp_path / "r"]), *published_tables()])
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "d.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "d.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert done.returncode == 0, done.stdout
    widths = re.findall(r"Overfull .hbox .(\d+)\.\d+pt", done.stdout)
    assert all(int(width) < 60 for width in widths), widths  # of a column of 345 pt
