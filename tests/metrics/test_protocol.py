"""Metrics beside torchmetrics, where it has them, and beside figures computed by hand."""

import math

import pytest
import torch

from dmtl.metrics import Angular, Depth, Edge, MaxF, MeanIoU, PixelF
from dmtl.tasks import make_task

from .test_metrics import METRICS, batch_of, each_metric


def seen(metric, *batches):
    for map, label in batches:
        metric.update(map, label)
    return metric.compute()


def known(map, label):
    """Pixels that count, as two flat tensors (of vectors: [n, 3])."""
    valid = (label != 255).all(1)
    flat = label[:, 0][valid] if label.shape[1] == 1 else label.movedim(1, -1)[valid]
    return (map if map.ndim == 3 else map.movedim(1, -1))[valid], flat


# beside torchmetrics


def test_classes_beside_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.classification")
    batches = [batch_of("mIoU", seed) for seed in range(3)]
    jaccard = theirs.MulticlassJaccardIndex(4, average=None, ignore_index=255)
    accuracy = theirs.MulticlassAccuracy(4, average="micro", ignore_index=255)
    for map, label in batches:
        jaccard.update(map, label[:, 0].long())
        accuracy.update(map, label[:, 0].long())
    ours = seen(MeanIoU(4), *batches)
    for number, value in enumerate(jaccard.compute().tolist()):
        assert ours[f"IoU/{number}"] == pytest.approx(100 * value, rel=1e-6)
    assert ours["mIoU"] == pytest.approx(100 * jaccard.compute().mean().item(), rel=1e-6)
    assert ours["pixel_acc"] == pytest.approx(100 * accuracy.compute().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "figure", "steps", "beta2"), [(MaxF, "maxF", 20, 0.3), (PixelF, "pixelF", 100, 1.0)]
)
def test_best_f_beside_torchmetrics(metric, figure, steps, beta2):
    theirs = pytest.importorskip("torchmetrics.classification")
    batches = [batch_of("maxF", seed) for seed in range(3)]
    best = 0.0
    for k in range(1, steps):
        f = theirs.BinaryFBetaScore(math.sqrt(beta2), threshold=k / steps, ignore_index=255)
        for map, label in batches:
            f.update(map, label[:, 0].long())
        best = max(best, f.compute().item())
    assert seen(metric(), *batches)[figure] == pytest.approx(100 * best, rel=1e-6)


def test_depth_beside_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.regression")
    batches = [batch_of("depth", seed) for seed in range(3)]
    rmse, log_rmse = theirs.MeanSquaredError(squared=False), theirs.MeanSquaredError(squared=False)
    absolute, relative = theirs.MeanAbsoluteError(), theirs.MeanAbsolutePercentageError()
    for map, label in batches:
        p, y = known(map.double(), label.double())
        p = torch.where(p <= 0, 1e-9, p)
        for metric in (rmse, absolute, relative):
            metric.set_dtype(torch.float64).update(p, y)
        log_rmse.set_dtype(torch.float64).update(p.log(), y.log())
    ours = seen(Depth(), *batches)
    for figure, metric in (
        ("rmse", rmse),
        ("abs_err", absolute),
        ("log_rmse", log_rmse),
        ("abs_rel", relative),
    ):
        assert ours[figure] == pytest.approx(metric.compute().item(), rel=1e-6), figure


def test_angles_beside_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional")
    batches = [batch_of("angular", seed) for seed in range(3)]
    cosine = torch.cat([theirs.cosine_similarity(*known(*batch), reduction="none") for batch in batches])
    angle = torch.rad2deg(torch.acos(cosine.double()))
    ours = seen(Angular(), *batches)
    assert ours["mean"] == pytest.approx(angle.mean().item(), rel=1e-5)
    assert ours["rmse"] == pytest.approx(angle.square().mean().sqrt().item(), rel=1e-5)
    assert ours["within_30"] == pytest.approx(100 * (angle < 30).double().mean().item(), rel=1e-6)


# by hand


def pixels(*values, dtype=torch.float32):
    """One row of pixels: a map [1, 1, W]."""
    return torch.tensor([[values]], dtype=dtype)


def label_of(*values):
    return pixels(*values)[None]


def test_saliency_by_hand():
    """Four pixels, the second and the last of them salient; F = 1.3 P R / (0.3 P + R).

    The last alone gives P = 1 and R = 1/2, F = 0.65 / 0.8; the last three P = 2/3 and R = 1. The published
    thresholds are at p = 0.2007, 0.4055, 0.6190 and 0.8473.
    """
    figures = seen(MaxF(), (pixels(0.1, 0.3, 0.5, 0.9), label_of(0, 1, 0, 1)))
    assert figures["maxF"] == pytest.approx(65 / 0.8)
    assert figures["maxF_paper"] == pytest.approx(65 / 0.8)
    figures = seen(MaxF(), (pixels(0.1, 0.3, 0.5, 0.6), label_of(0, 1, 0, 1)))
    assert figures["maxF"] == pytest.approx(65 / 0.8)  # only 0.55 and 0.6 tell the last two pixels apart
    assert figures["maxF_paper"] == pytest.approx(130 * (2 / 3) / 1.2)  # and the published steps do not


def test_classes_by_hand():
    """Four known pixels: 0 0 1 2 predicted as 0 1 1 1; class 3 never occurs, and counts as published."""
    figures = seen(MeanIoU(4), (pixels(0, 1, 1, 1, 3, dtype=torch.int64), label_of(0, 0, 1, 2, 255)))
    assert figures["mIoU"] == pytest.approx(100 * (1 / 2 + 1 / 3 + 0 + 0) / 4)
    assert figures["pixel_acc"] == 50


def test_depth_by_hand():
    """Errors of 1, -1 and 2 at labels 1, 2 and 4; the pixel at 0 is unknown."""
    figures = seen(Depth(), (pixels(2, 1, 6, 9), label_of(1, 2, 4, 0)))
    log = (math.log(2) ** 2 + math.log(0.5) ** 2 + math.log(1.5) ** 2) / 3
    expected = dict(rmse=math.sqrt(6 / 3), abs_err=4 / 3, log_rmse=math.sqrt(log))
    expected |= dict(abs_rel=(1 + 0.5 + 0.5) / 3, sq_rel=(1 + 0.5 + 1) / 3)
    assert figures == pytest.approx(expected, rel=1e-7)


def test_normals_by_hand():
    """Vectors of any length at 0, 20, 60 and 180 degrees from the label."""
    angles = torch.tensor([0.0, 20.0, 60.0, 180.0], dtype=torch.float64).deg2rad()
    map = 3 * torch.stack([angles.sin(), 0 * angles, angles.cos()])[None, :, None]
    label = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 1, 4)
    figures = seen(Angular(), (map.float(), label))
    assert figures["mean"] == pytest.approx(65, abs=1e-4)
    assert figures["median"] == pytest.approx(40, abs=0.0051)
    assert figures["rmse"] == pytest.approx(math.sqrt((20**2 + 60**2 + 180**2) / 4), abs=1e-4)
    assert (figures["within_11.25"], figures["within_22.5"], figures["within_30"]) == (25, 50, 50)


def test_edges_by_hand():
    """bce is the loss of the probability, `loss` that of the probability taken for a logit."""
    figures = seen(Edge(), (pixels(0.8, 0.4, 0.2), label_of(1, 0, 255)))
    assert figures["bce"] == pytest.approx((-0.95 * math.log(0.8) - 0.05 * math.log(0.6)) / 2, rel=1e-6)
    twice = [1 / (1 + math.exp(-p)) for p in (0.8, 0.4)]
    expected = (-0.95 * math.log(twice[0]) - 0.05 * math.log(1 - twice[1])) / 2
    assert figures["loss"] == pytest.approx(expected, rel=1e-6)
    assert figures["pixelF"] == 100


# what figures are


@each_metric
def test_notes_are_of_figures(name):
    metric = METRICS[name]()
    figures = seen(metric, batch_of(name))
    assert set(metric.notes) <= set(figures) and all(metric.notes.values())


def test_both_modes_are_named():
    """Wherever the published code differs from the definition."""
    notes = make_task("sal").new_metric().notes | make_task("edge").new_metric().notes
    modes = {figure: notes[figure].split(":")[0] for figure in ("maxF", "maxF_paper", "loss", "bce")}
    assert modes == {
        "maxF": "definition",
        "maxF_paper": "published",
        "loss": "published",
        "bce": "definition",
    }
    assert make_task("semseg").new_metric().notes["mIoU"].startswith("published")


@each_metric
def test_states_are_integers_or_float64(name):
    metric = METRICS[name]()
    seen(metric, batch_of(name))
    assert {value.dtype for value in metric.state().values()} <= {torch.int64, torch.float64}
