"""From run folders to report data:

Delta pair by pair, missing pieces, unfair comparisons said aloud, pictures.
"""

import json
import statistics

import numpy as np
import pytest
import torch

from dmtl.data import LabelledImages, LabelMatrix, Sample
from dmtl.errors import DataError
from dmtl.models import ModelConfig, create_model
from dmtl.report import compare, write_page
from dmtl.report.html.content import render
from dmtl.report.html.predictions import HIDDEN, sample_pictures
from dmtl.report.html.report import report_data
from dmtl.report.runs.comparison import comparison_of
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import read_run
from dmtl.tasks import make_task

TASKS = {
    t.name: t for t in (make_task("semseg", classes=["sky", "road"]), make_task("depth"), make_task("edge"))
}
IDS = [f"image{i}" for i in range(6)]
TINY = dict(width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1)


class Toy(LabelledImages):
    """Six images of noise; image 1 has no depth label."""

    def __init__(self, split="train"):
        super().__init__("toy", split, TASKS, IDS)

    def read(self, index, tasks=None):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 32, 40), generator=generator, dtype=torch.uint8)
        labels = {"semseg": image[:1] // 128, "edge": image[1:2] // 200, "depth": 1 + image[2:].float() / 50}
        if index == 1:
            del labels["depth"]
        return Sample(self.ids[index], image, {t: labels[t] for t in self.wanted(tasks) if t in labels})


def write_run(path, miou, rmse, diffusion="none", seed=0, initial=None, labels_seed=0, step=20):
    """A run folder as `dmtl train` leaves it."""
    metrics = {
        "semseg": {"mIoU": miou, "pixel_acc": 50.0, "IoU/sky": 1.0, "IoU/road": 2.0},
        "depth": {"rmse": rmse, "abs_rel": 0.3},
    }
    metrics["edge"] = {"pixelF": 30.0, "loss": 0.1, "bce": 0.2}
    if initial is not None:
        metrics |= {"initial/semseg": {**metrics["semseg"], "mIoU": initial}}
    primary = {"semseg": ["mIoU", miou, True], "depth": ["rmse", rmse, False], "edge": ["pixelF", 30.0, True]}
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(
        json.dumps({"step": step, "seconds": 75.0, "metrics": metrics, "primary": primary})
    )
    rows = [
        {"event": "train", "step": s, "seconds": s * 1.0, "loss": 5.0 / s, "lr": 1e-3}
        for s in range(1, step + 1)
    ]
    rows.append({"event": "eval", "step": step, "seconds": 75.0, "metrics": metrics})
    (path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"event": "tr')
    (path / "config.toml").write_text(
        '[data]\nroot = "toy"\nsize = [32, 40]\nlabels = "one-label"\n'
        f'[model]\ndiffusion = "{diffusion}"\nsteps = 2\nwidth = 8\n'
        f"[optim]\nsteps = {step}\nbatch_size = 4\nseed = {seed}\n"
    )
    LabelMatrix.one_label(IDS, list(TASKS), labels_seed).write_csv(path / "labels.csv")
    torch.manual_seed(seed)
    specs = [t.spec() for t in TASKS.values()]
    config = ModelConfig(tasks=specs, diffusion=diffusion, **TINY)
    create_model(config).save_pretrained(path / "model")
    return path


def data_of(**methods):
    """Report data of run folders by method, without pictures."""
    read = {name: Method(name, [read_run(path) for path in paths]) for name, paths in methods.items()}
    return report_data(comparison_of(read))


def test_delta_is_taken_pair_by_pair(tmp_path):
    ours = [write_run(tmp_path / f"d{i}", 44.0 + i, 0.9, "feature", i, initial=40.0) for i in range(2)]
    base = [write_run(tmp_path / f"m{i}", 40.0 + 5 * i, 1.0, "none", i) for i in range(2)]
    data = data_of(MTL=base, DiffusionMTL=ours)
    pairs = [(10 + 10 + 0) / 3, (0 + 10 + 0) / 3]
    assert data.delta["DiffusionMTL"] == pytest.approx((statistics.fmean(pairs), statistics.stdev(pairs)))
    assert data.runs == 2 and data.methods == ["MTL", "DiffusionMTL", "DiffusionMTL, initial map"]
    assert data.compared == ["DiffusionMTL"]
    rows = {(r.task, r.metric): r for r in data.metrics}
    assert ("semseg", "IoU/sky") not in rows
    assert rows["semseg", "mIoU"].values["MTL"] == pytest.approx((42.5, statistics.stdev([40, 45])))
    assert rows["semseg", "mIoU"].values["DiffusionMTL, initial map"] == (40.0, 0.0)
    assert (
        rows["depth", "rmse"].unit,
        rows["depth", "rmse"].higher_is_better,
        rows["depth", "rmse"].primary,
    ) == ("m", False, True)
    assert not rows["edge", "loss"].higher_is_better and rows["semseg", "pixel_acc"].higher_is_better
    assert not rows["semseg", "pixel_acc"].primary
    assert dict(data.facts)["Time, MTL"] == "1 min 15 s" and dict(data.facts)["Seeds"] == "0, 1"
    assert dict(data.facts)["Diffusion"] == "feature, 2 steps"
    assert [c.title for c in data.curves] == [
        f"{t}, mean of runs"
        for t in ("Training loss, smoothed", "Delta_MTL ↑", "semseg ↑", "depth ↓", "edge ↑")
    ]
    assert len(data.curves[0].series["MTL"][0]) == 20 and data.curves[2].series["DiffusionMTL"] == (
        [20],
        [44.5],
    )


def test_steps_of_a_run_that_counts_epochs_are_those_it_took(tmp_path):
    path = write_run(tmp_path / "d", 44.0, 0.9, "feature")
    data = data_of(DiffusionMTL=[path])
    assert dict(data.facts)["Training"] == "20 steps of 4"
    file = path / "config.toml"
    file.write_text(file.read_text().replace("steps = 20\n", "steps = 1000\nepochs = 5\n"))
    data = data_of(DiffusionMTL=[path])
    assert dict(data.facts)["Training"] == "20 steps of 4"


def test_the_title_names_the_data_of_both_methods(tmp_path):
    base, ours = write_run(tmp_path / "m", 40.0, 1.0), write_run(tmp_path / "d", 44.0, 0.9, "feature")
    assert data_of(MTL=[base], Feature=[ours]).title == "Feature compared with MTL on toy"
    file = ours / "config.toml"
    file.write_text(file.read_text().replace("toy", "data/nyud"))
    assert data_of(MTL=[base], Feature=[ours]).title == "Feature compared with MTL on toy and nyud"


def test_the_page_of_one_run_speaks_of_no_gain(tmp_path):
    base, ours = write_run(tmp_path / "m", 40.0, 1.0), write_run(tmp_path / "d", 44.0, 0.9, "feature")
    for methods, gains in (({"Feature": [ours]}, False), ({"MTL": [base], "Feature": [ours]}, True)):
        page = render(data_of(**methods))
        assert ("relative gain" in page, "Gain: relative to" in page) == (gains, gains)


def test_unfair_comparisons_are_said_aloud(tmp_path):
    ours = write_run(tmp_path / "d", 44.0, 0.9, "feature", seed=3, labels_seed=1)
    base = write_run(tmp_path / "m", 40.0, 1.0, step=10)
    data = data_of(MTL=[base], DiffusionMTL=[ours])
    assert data.warning.endswith(f"{ours} used other training labels than {base}.")
    assert [row["steps"] for row in data.summary] == ["10", "20"]
    assert data.summary[1]["basis"] == "not paired: 3, relative to MTL's mean"
    assert "compare the metrics, not the losses" in " ".join(data.notes)


def test_page_from_runs_has_pictures_of_every_step(tmp_path):
    ours, base = write_run(tmp_path / "d", 44.0, 0.9, "feature"), write_run(tmp_path / "m", 40.0, 1.0)
    comparison = compare([ours], [base], ["MTL", "DiffusionMTL"])
    out = write_page(
        tmp_path / "r.html", comparison, train_set=Toy(), val_set=Toy("val"), pictures=2, train_pictures=2
    )
    text = out.read_text()
    # 4 images with 3 tasks: the input; label, initial map, step 1, step 2, MTL; less labels that do not
    # exist; of the 2 validation images uncertainty, and error where there is a label (image 1 has no depth)
    assert text.count("<img") == 4 * (1 + 3 * 5) - text.count("no map</span>") + 2 * 3 + (2 * 3 - 1)
    assert "uncertainty (8 samples)" in text and "validation images with 8 noise samples" in text
    assert "training image" in text and "validation image" in text and "step 2, final" in text
    assert "Parameters, DiffusionMTL" in text and "No pictures" not in text


def test_only_configuration_and_metrics_must_be_there(tmp_path):
    paths = [write_run(tmp_path / name, 44.0, 0.9, kind) for name, kind in (("d", "feature"), ("m", "none"))]
    for path in paths:
        for file in ("labels.csv", "log.jsonl", "model/config.json"):
            (path / file).unlink()
    text = write_page(tmp_path / "r.html", compare(paths)).read_text()
    assert (
        "mIoU" in text and "No pictures: " in text and "<img" not in text and "What was labelled" not in text
    )


def test_one_run_alone(tmp_path):
    text = write_page(
        tmp_path / "r.html",
        compare([write_run(tmp_path / "d", 44.0, 0.9, "feature")], labels=["DiffusionMTL"]),
        train_set=Toy(),
        val_set=Toy(),
        pictures=1,
        train_pictures=0,
    ).read_text()
    assert "DiffusionMTL on toy" in text and " against " not in text.split("</style>")[1]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "metrics.json: is missing, expected the folder of a finished run"),
        ("{", "metrics.json: not valid JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"metrics": {"semseg": {"mIoU": 1}}}', "not as `dmtl train` writes it"),
        ('{"metrics": {"semseg": 3}, "primary": {}}', "not as `dmtl train` writes it"),
    ],
)
def test_damaged_runs_are_named(tmp_path, content, text):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=text):
        read_run(tmp_path)


def test_runs_that_do_not_belong_together(tmp_path):
    first, second = write_run(tmp_path / "a", 1.0, 1.0), write_run(tmp_path / "b", 1.0, 1.0)
    summary = json.loads((second / "metrics.json").read_text())
    del summary["primary"]["edge"]
    (second / "metrics.json").write_text(json.dumps(summary))
    data = data_of(MTL=[first], DiffusionMTL=[second])
    assert data.warning == f"Not comparable: {second} has other tasks than {first}."
    summary["primary"] = json.loads((first / "metrics.json").read_text())["primary"]
    summary["primary"]["edge"][0] = "loss"
    (second / "metrics.json").write_text(json.dumps(summary))
    data = data_of(MTL=[first], DiffusionMTL=[second])
    assert data.warning == f"Not comparable: {second} has other main metrics than {first}."


def test_a_metric_without_value_gives_no_delta_and_says_why(tmp_path):
    ours, base = (
        write_run(tmp_path / "d", 44.0, float("nan"), "feature"),
        write_run(tmp_path / "m", 40.0, 1.0),
    )
    data = data_of(MTL=[base], DiffusionMTL=[ours])
    assert np.isnan(data.delta["DiffusionMTL"]) and any("depth rmse" in note for note in data.notes)


def test_hidden_and_missing_labels_are_marked(tmp_path):
    labels = LabelMatrix(IDS, list(TASKS), np.array([[True, False, False]] * 6))
    model = create_model("diffusionmtl", TASKS, **TINY)
    seen = sample_pictures({"DiffusionMTL": model}, Toy(), [1, 2], labels=labels, steps=3)
    cells = {(s.id, task): row for s in seen for task, row in s.rows.items()}
    assert cells["image1", "semseg"][0].note == "" and cells["image1", "edge"][0].note == HIDDEN
    assert cells["image1", "depth"][0].rgb is None and cells["image2", "depth"][0].note == HIDDEN
    captions = ["label", "initial map", "step 1", "step 2", "step 3, final"]
    assert all([c.caption for c in row] == captions for row in cells.values())
    unseen = sample_pictures({"DiffusionMTL": model}, Toy(), [2], steps=3)[0]
    assert all(row[0].note == "" for row in unseen.rows.values())
    again = sample_pictures({"DiffusionMTL": model}, Toy(), [2], steps=3)[0]
    assert all(
        np.array_equal(a.rgb, b.rgb)
        for r, s in zip(unseen.rows.values(), again.rows.values())
        for a, b in zip(r, s)
    )


def test_pictures_do_not_depend_on_who_else_is_shown():
    model = create_model("diffusionmtl", TASKS, **TINY)
    alone, among = sample_pictures({"A": model}, Toy(), [4]), sample_pictures({"A": model}, Toy(), [0, 4])
    assert all(
        np.array_equal(a.rgb, b.rgb)
        for r, s in zip(alone[0].rows.values(), among[1].rows.values())
        for a, b in zip(r, s)
    )
