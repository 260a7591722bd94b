"""A new kind of task is one class and one entry of `KINDS`: no other room has to know it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.data import open_dataset
from dmtl.data.folder.check import check_dataset
from dmtl.data.folder.write import export_folder
from dmtl.data.loading.batch import Batch
from dmtl.evaluation.saved_maps import MapWriter, SavedMaps
from dmtl.metrics import Metric
from dmtl.predict import Predictor
from dmtl.report import compare, write_page
from dmtl.report.html.dataset import dataset_report
from dmtl.tasks import KINDS, Task, make_task, task_from_spec
from dmtl.tasks.base import Words, as_array
from dmtl.tasks.stored import Pixels, rounded
from dmtl.train.trainer import Trainer
from tests.train.conftest import small_run, write_images


class EndPointError(Metric):
    """Mean length of the difference of two vectors."""

    map_channels = 2

    def __init__(self, ignore: float):
        zeros = {"length": torch.zeros((), dtype=torch.float64), "pixels": torch.zeros((), dtype=torch.int64)}
        super().__init__(zeros, ignore=ignore)

    def _accumulate(self, map, label_BKHW, valid_BHW) -> None:
        length = (map - label_BKHW).norm(dim=1)
        self._add(length=length[valid_BHW].double().sum(), pixels=valid_BHW.sum())

    def compute(self) -> dict[str, float]:
        return {"epe": self._sums["length"].item() / max(self._sums["pixels"].item(), 1)}


@dataclass(frozen=True, kw_only=True)
class Motion(Task):
    """Two numbers for each pixel: how far it moves along the rows and the columns."""

    reach: float = 8.0  # pixels at the ends of the colour scale

    kind = "motion"
    label_channels = 2
    primary = "epe"
    higher_is_better = False
    graded = True
    unit = "px"
    words = Words("motions", "motion")

    @property
    def channels(self) -> int:
        return 2

    def _pixel_loss(self, logits_BCHW, label_BKHW, valid_B1HW):
        return (logits_BCHW - label_BKHW).abs().sum(1, keepdim=True)

    def decode(self, logits_BCHW):
        self._check_logits("decode", logits_BCHW)
        return logits_BCHW.float()

    def values(self, logits_BCHW):
        return self.decode(logits_BCHW)

    def from_values(self, mean_BDHW):
        return mean_BDHW

    def error(self, map, label_BKHW):
        return (map - label_BKHW).norm(dim=1)

    def new_metric(self):
        return EndPointError(self.ignore)

    def metric_unit(self, metric):
        return self.unit

    def picture(self, map, value_range=None):
        return self.map_to_pixels(as_array(map, "picture", "map", 3)).values

    def label_picture(self, label_KHW, value_range=None):
        return self.picture(label_KHW)

    def flip(self, label_KHW):
        mirrored_KHW = super().flip(label_KHW)
        return torch.where(
            self.valid(mirrored_KHW), mirrored_KHW * torch.tensor([-1.0, 1]).view(2, 1, 1), self.ignore
        )

    def map_to_pixels(self, map):
        share = rounded((map / self.reach + 1) * 127.5, np.uint8)
        return Pixels(np.stack([*share, np.full_like(share[0], 128)], -1))

    def map_format(self):
        text = "8-bit red and green; component = (value / 127.5 - 1) * reach"
        return {"kind": self.kind, "png": text, "unit": self.unit}


@pytest.fixture
def folder(tmp_path, monkeypatch, one_thread):
    """The small data set with a task of the new kind in .npy files, a corner of each without a label."""
    monkeypatch.setitem(KINDS, "motion", Motion)
    root = write_images(tmp_path / "data")
    description = yaml.safe_load((root / "dataset.yaml").read_text())
    description["tasks"]["drift"] = {"kind": "motion", "reach": 5.0}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    (root / "drift").mkdir()
    for number in range(10):
        motion = np.random.default_rng(number).normal(size=(32, 32, 2)).astype(np.float32)
        motion[:4, :5, 1] = np.nan
        np.save(root / "drift" / f"i{number}.npy", motion)
    return root


def test_made_and_described(folder):
    task = make_task("drift", "motion", reach=5.0)
    assert type(task) is Motion and task_from_spec(json.loads(json.dumps(task.spec()))) == task
    assert task.loss_kind is None and task.decoding is None  # computed by the general way


def test_labels_in_folders(folder, tmp_path):
    data = open_dataset(folder, "train")
    label = data.read(0).labels["drift"]
    stored = np.load(folder / "drift" / "i0.npy")
    assert label.shape == (2, 32, 32) and label.dtype == torch.float32
    assert (label[:, :4, :5] == 255).all() and (
        label.numpy()[:, 4:] == np.moveaxis(stored, 2, 0)[:, 4:]
    ).all()
    assert check_dataset(data) == []
    export_folder(data, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy", "train")
    assert copy.tasks == data.tasks and torch.equal(copy.read(0).labels["drift"], label)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "drift" / "i1.png")
    (folder / "drift" / "i1.npy").unlink()
    (problem,) = check_dataset(open_dataset(folder, "train"))
    assert str(problem).endswith("drift/i1.png: uint8 values of shape [32, 32], expected [H, W, 2]")
    page = dataset_report(copy, tmp_path / "data.html", count=1).read_text()
    assert "motions" in page and "Mean vector" in page


def test_predictions_go_there_and_back(folder, tmp_path):
    batch = Batch(["a"], torch.arange(1), torch.zeros(1, 3, 6, 7), {}, {}, [(6, 7)], [(0, 0)])
    maps = {"drift": torch.randn(1, 2, 6, 7)}
    tasks = {"drift": make_task("drift", "motion")}
    writer = MapWriter(tmp_path / "maps", tasks, {})
    writer.add(batch, maps)
    writer.write_index()
    assert torch.equal(
        SavedMaps(tmp_path / "maps", tasks, {"drift": ["a"]}).maps_of(batch, tasks)["drift"], maps["drift"]
    )
    index = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert index["tasks"]["drift"] == {"kind": "motion", "unit": "px", "npy": "float32 [H, W, 2]; motion"}


def test_trained_evaluated_predicted_and_reported(folder, tmp_path):
    """A run with cross-task consistency, whose model is then loaded again."""
    runs = {}
    for name, model in (("ours", {"diffusion": "feature", "steps": 1}), ("mtl", {"diffusion": "none"})):
        optim = dict(steps=2, objectives={"mtpsl": 1.0} if name == "mtl" else {})
        config = small_run(folder, tmp_path / name, model=model, optim=optim, log=dict(eval_every=2))
        runs[name] = Trainer(config).fit()
        assert runs[name]["drift"]["epe"] > 0
    predictor = Predictor(tmp_path / "ours", samples=2)
    summary = predictor.predict_files([folder / "images" / "i8.png"], tmp_path / "out", npy=True)
    assert summary.ok, str(summary)
    assert np.load(tmp_path / "out" / "drift" / "i8.npy").shape == (2, 32, 32)
    assert np.asarray(Image.open(tmp_path / "out" / "drift" / "i8.png")).shape == (32, 32, 3)
    index = json.loads((tmp_path / "out" / "maps.json").read_text())
    assert index["tasks"]["drift"]["kind"] == "motion" and index["uncertainty"]["drift"]["means"].endswith(
        "in px²"
    )
    comparison = compare([tmp_path / "ours"], [tmp_path / "mtl"])
    options = dict(pictures=1, train_pictures=1, samples=2)
    page = write_page(tmp_path / "report.html", comparison, **options).read_text()
    assert "drift" in page and "px²" in page
