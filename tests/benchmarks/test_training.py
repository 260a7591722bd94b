"""Training contenders at toy sizes: they compute the same gradients; figures mean nothing."""

import json

import pytest
import torch

from benchmarks import training
from benchmarks.cases import Case
from benchmarks.training import Trainee, TrainingCase, TrainingRace, difference, recipe_case
from dmtl.models.encoder_weights import how_to_get, pretrained_source
from dmtl.train.config import DataConfig, OptimConfig, RunConfig

TOY = Case(
    size=(64, 64), batch=4, options={"width": 32, "backbone_width": 16, "blocks": 1, "decoder_blocks": 1}
)


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        ("one", 4),
        pytest.param("random", 12, marks=pytest.mark.slow),
        pytest.param("all", 20, marks=pytest.mark.slow),
    ],
)
def test_everybody_computes_the_same_gradients(labels, pairs):
    fp32 = [(name, "fp32") for name in ("published", "expert", "dmtl")]
    race = TrainingRace(TrainingCase(TOY, labels), fp32, modes=())
    race.round()
    race.round()
    rows = race.result()
    assert [row["contender"] for row in rows] == ["published", "expert", "dmtl"]
    for row in rows:
        assert row["difference"] < 1e-3 and row["loss"] == pytest.approx(row["reference_loss"], rel=1e-4)
        assert row["pairs"] == pairs and row["rounds"] == 2
        assert row["pairs_per_s"] == pytest.approx(1e3 * pairs / row["median_ms"])
    assert rows[0]["times published fp32"] == rows[1]["times expert fp32"] == 1.0
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.skipif(pretrained_source("efficientnet_lite0") is None, reason=how_to_get("efficientnet_lite0"))
@pytest.mark.parametrize("diffusion", ["none", pytest.param("feature", marks=pytest.mark.slow)])
def test_the_recipe_is_a_case(diffusion):
    case = recipe_case(diffusion, "cpu").but(size=(64, 64), batch=3)
    fp32 = [(name, "fp32") for name in ("published", "expert", "dmtl")]
    race = TrainingRace(TrainingCase(case), fp32, modes=())
    race.round()
    rows = race.result()
    assert {row["case"] for row in rows} == {f"efficientnet_lite0, diffusion {diffusion}"}
    assert all(row["difference"] < 1e-2 and row["median_ms"] > 0 for row in rows)


def test_who_is_wrong_is_not_timed(monkeypatch):
    def make(case, name, precision, **options):
        if name == "published":
            raise RuntimeError("out of memory\nand more")
        made = training.ours(case, precision)
        loss = made.loss
        doubled = Trainee(name, precision, made.model, lambda *a: 2 * loss(*a), made.step)
        return doubled if name == "expert" else made

    monkeypatch.setattr(training, "make", make)
    race = TrainingRace(TrainingCase(TOY), [(name, "fp32") for name in ("published", "expert", "dmtl")])
    race.round()
    published, expert, ours = race.result()
    assert published["error"] == "RuntimeError: out of memory and more" and "median_ms" not in published
    assert expert["error"].startswith("gradients differ by 1.00e+00") and "median_ms" not in expert
    assert ours["median_ms"] > 0


def test_difference():
    a, b = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])}
    assert difference(b, a) == pytest.approx(0.1)
    assert difference({}, a) == float("inf")
    assert difference(a | {"v": torch.zeros(2)}, a) == 0.0  # a gradient of zeros is none


def test_batches():
    one, same, everything = (TrainingCase(TOY, labels).batch() for labels in ("one", "one", "all"))
    assert torch.equal(one.image, same.image) and torch.equal(one.labels["normals"], same.labels["normals"])
    assert all(sum(int(mask[i]) for mask in one.present.values()) == 1 for i in range(4))
    assert all(mask.all() for mask in everything.present.values())
    norm = one.labels["normals"].norm(dim=1)
    assert torch.allclose(norm, torch.ones_like(norm))


def test_peak_memory_in_a_process_of_its_own():
    row = training.peak(TrainingCase(TOY), "dmtl", "fp32")
    assert row["part"] == "training memory" and row["peak_mib"] > 100
    assert "nowhere" in training.peak(TrainingCase(TOY.but(model="nowhere")), "dmtl", "fp32")["error"]


def test_loading():
    data = DataConfig(size=(32, 32), train_count=12)
    row = training.loading(RunConfig(data=data, optim=OptimConfig(batch_size=4)), batches=2)
    assert row["images"] == 8 and row["images_per_s"] > 0
