"""Whether a model is unsure where it is wrong: figures against known errors, pictures pixel by pixel."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmtl.data.loading.order import evenly
from dmtl.models import ModelConfig, create_model
from dmtl.report import compare, write_page
from dmtl.report.html.predictions import sample_pictures
from dmtl.report.html.uncertainty import averaging, error_auroc, uncertainty_cells
from dmtl.tasks import make_task
from dmtl.tasks.palette import EMBER, GREY

from .test_report import TASKS, Toy, write_run


class Oracle:
    """An engine that always predicts 0, and knows (or has it the wrong way round) where that is wrong."""

    tasks, device, samples = TASKS, torch.device("cpu"), 8

    def __init__(self, sign):
        self.sign, self.seen = sign, []

    def maps(self, image, names, *, steps, noise):
        maps = {name: torch.zeros(len(image), *image.shape[-2:]) for name in names}
        maps["semseg"] = maps["semseg"].long()
        unsure = {name: torch.zeros(len(image), *image.shape[-2:]) for name in names}
        for row, index in enumerate(noise.samples.tolist()):
            self.seen.append(index)
            for name, label in Toy().read(index, names).labels.items():
                unsure[name][row] = self.sign * TASKS[name].error(maps[name][row : row + 1], label[None])[0]
        return SimpleNamespace(maps=maps, uncertainty=unsure)


@pytest.mark.parametrize(("sign", "auroc"), [(1, 1.0), (-1, 0.0), (0, 0.5)])
def test_auroc_of_known_errors(sign, auroc):
    """Perfect, inverted and constant uncertainty; the missing label of image 1 does not count."""
    engine = Oracle(sign)
    found = error_auroc(engine, Toy("val"), "DiffusionMTL")
    assert (found.method, found.draws, found.images) == ("DiffusionMTL", 8, 6)
    assert {row.task: row.auroc for row in found.rows} == dict.fromkeys(TASKS, auroc)
    assert engine.seen == list(range(6))  # each image's noise is that of its place in the data set
    measures = {row.task: row.measure.rsplit(", ")[1] for row in found.rows}
    assert measures == {"semseg": "nats", "depth": "m²", "edge": "nats"}


def test_fewer_images_where_they_are_large(monkeypatch):
    monkeypatch.setattr("dmtl.report.html.uncertainty.FEWEST", 2)
    monkeypatch.setattr("dmtl.report.html.uncertainty.PIXELS", 4 * 32 * 40)
    engine = Oracle(1)
    assert error_auroc(engine, Toy(), "a").images == 4 and engine.seen == evenly(6, 4)
    monkeypatch.setattr("dmtl.report.html.uncertainty.PIXELS", 1)
    assert error_auroc(Oracle(1), Toy(), "a").images == 2


def test_nothing_to_score():
    class Unlabelled(Toy):
        def available(self):
            full = super().available()
            return type(full)(full.ids, full.tasks, np.zeros_like(full.matrix))

    assert error_auroc(Oracle(1), Unlabelled(), "a") is None


@pytest.mark.parametrize(
    ("task", "map", "label", "error", "unit"),
    [
        (make_task("c", "classes", classes=3), [1, 1, 1], [1, 2, 255], [0, 1, None], "nats"),
        (make_task("b", "binary"), [0.9, 0.2, 0.2], [0, 0, 255], [1, 0, None], "nats"),
        (
            make_task("s", "scalar"),
            [1.0, 2.0, 5.0],
            [1.0, 4.0, math.nan],
            [0, 1, None],
            "label units squared",
        ),
    ],
)
def test_pictures_of_uncertainty_and_error(task, map, label, error, unit):
    """Dark without error, bright at the largest, grey without label; the scale says what bright means."""
    dtype = torch.int64 if task.kind == "classes" else torch.float32
    maps = {task.name: torch.tensor(map, dtype=dtype).view(1, 1, 3)}
    unsure = {task.name: torch.tensor([0.0, 0.5, 0.5]).view(1, 1, 3)}
    label = torch.tensor(label).view(1, 1, 3).to(torch.float32 if task.kind == "scalar" else torch.uint8)
    averaged = SimpleNamespace(maps=maps, uncertainty=unsure)
    first, second = uncertainty_cells(task, averaged, label, 8)
    ends = {0: np.rint(EMBER[0]), 1: np.rint(EMBER[-1]), None: GREY}
    assert np.array_equal(second.rgb[0], [ends[e] for e in error])
    assert np.array_equal(first.rgb[0], [ends[0], ends[1], ends[1]])
    assert (first.caption, first.scale) == ("uncertainty (8 samples)", f"0 to 0.5 {unit}")
    assert (second.caption, second.scale) == (
        "error",
        "0 to 2 label units" if task.graded else "bright: wrong",
    )
    assert len(uncertainty_cells(task, averaged, None, 8)) == 1


def small_model(diffusion="feature"):
    specs = [task.spec() for task in TASKS.values()]
    small = dict(width=8, backbone_width=4, heads=2, blocks=1, decoder_blocks=1)
    return create_model(ModelConfig(tasks=specs, diffusion=diffusion, **small))


def test_only_a_chain_has_draws():
    assert averaging(small_model("none"), 8) is None
    assert averaging(small_model(), 1) is None and averaging(small_model(), 0) is None
    assert averaging(small_model(), 3).samples == 3


def test_pictures_of_the_engines_own_draws():
    """The cells show the engine's maps of that image alone, whoever else is shown."""
    model = small_model().eval()
    engine = averaging(model, 4)
    alone, among = (sample_pictures({"A": model}, Toy(), i, engine=engine) for i in ([4], [0, 4]))
    for one, other in zip(alone[0].rows.values(), among[1].rows.values(), strict=True):
        assert [cell.caption for cell in one][-2:] == ["uncertainty (4 samples)", "error"]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(one, other, strict=True))
    without = sample_pictures({"A": model}, Toy(), [4])
    assert [len(row) for row in alone[0].rows.values()] == [len(row) + 2 for row in without[0].rows.values()]


@pytest.mark.parametrize(("diffusion", "samples"), [("feature", 0), ("feature", 1), ("none", 8)])
def test_page_without_draws(tmp_path, diffusion, samples):
    run = write_run(tmp_path / "d", 44.0, 0.9, diffusion)
    options = dict(train_set=Toy(), val_set=Toy("val"), pictures=1, train_pictures=0, samples=samples)
    text = write_page(tmp_path / "r.html", compare([run]), **options).read_text()
    assert "validation image" in text and "No pictures" not in text
    assert "AUROC" not in text and "noise samples" not in text
