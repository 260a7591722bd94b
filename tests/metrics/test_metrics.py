"""Every metric against its definition, the published meters, and itself on the same data split otherwise."""

import json
import math

import numpy as np
import pytest
import torch

from dmtl.metrics import Angular, Depth, Edge, MaxF, MeanIoU, PixelF
from tests import golden
from tests.metrics import oracles

METRICS = {
    "mIoU": lambda: MeanIoU(4),
    "mIoU skip": lambda: MeanIoU(6, absent="skip"),
    "maxF": MaxF,
    "pixelF": PixelF,
    "edge": Edge,
    "angular": Angular,
    "depth": Depth,
    "number": lambda: Depth(relative=False),
}
each_metric = pytest.mark.parametrize("name", METRICS)


def batch_of(name: str, seed: int = 0, shape=(3, 5, 7)):
    """A decoded map and its label, a fifth of the pixels ignored."""
    g = torch.Generator().manual_seed(seed)
    b, h, w = shape
    if name.startswith("mIoU"):  # class 4 and 5 of "skip" never occur
        map = torch.randint(4, shape, generator=g)
        label = torch.randint(4, (b, 1, h, w), generator=g, dtype=torch.uint8)
    elif name in ("maxF", "pixelF", "edge"):
        map = torch.rand(shape, generator=g)
        label = (torch.rand((b, 1, h, w), generator=g) < 0.3 + 0.4 * map[:, None]).to(torch.uint8)
    elif name == "angular":
        label = torch.randn((b, 3, h, w), generator=g)
        map = label + 0.7 * torch.randn((b, 3, h, w), generator=g)
    else:
        label = 0.1 + 9 * torch.rand((b, 1, h, w), generator=g)
        map = label[:, 0] + 2 * torch.randn(shape, generator=g)
    return map, label.masked_fill(torch.rand((b, 1, h, w), generator=g) < 0.2, 255)


def expected_of(name: str, map, label) -> dict[str, float]:
    map, label = map.numpy(), label.numpy()
    return {
        "mIoU": lambda: oracles.mean_iou(map, label, 4),
        "mIoU skip": lambda: oracles.mean_iou(map, label, 6, "skip"),
        "maxF": lambda: oracles.max_f(map, label),
        "pixelF": lambda: {"pixelF": oracles.edge(map, label)["pixelF"]},
        "edge": lambda: oracles.edge(map, label),
        "angular": lambda: oracles.angular(map, label),
        "depth": lambda: oracles.depth(map, label),
        "number": lambda: oracles.depth(map, label, relative=False),
    }[name]()


def published(case: str, task: str):
    """Decoded maps and label of one golden batch."""
    shape = (2, 1, 24, 32)
    if task == "depth":
        label = 10 * golden.rs(f"{case}/label/depth").random_sample(shape) + 0.1
        unknown = golden.rs(f"{case}/ignore/depth").random_sample(shape) < 0.07
        map = label + golden.rs(f"{case}/logit/depth").standard_normal(shape)
        map, label = np.where(unknown, 5, map), np.where(unknown, 255, label)
        return torch.from_numpy(map[:, 0].astype(np.float32)), torch.from_numpy(label.astype(np.float32))
    channels = golden.CHANNELS[task]
    label = golden.labels(case, 2, 24, 32)[task]
    logits = 2 * golden.normal(f"{case}/logit/{task}", (2, channels, 24, 32))
    known_label = torch.where(label == 255, 0.0, label)
    if task in ("semseg", "human_parts", "sal"):
        logits = logits + 2 * (torch.arange(channels)[:, None, None] == known_label)
    if task == "normals":
        return logits + 3 * known_label, label
    map = {"sal": lambda: logits.softmax(1)[:, 1], "edge": lambda: logits[:, 0].sigmoid()}
    return map.get(task, lambda: logits.argmax(1))(), label


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("semseg", MeanIoU(21)),
        ("human_parts", MeanIoU(7)),
        ("sal", MaxF()),
        ("normals", Angular()),
        ("edge", Edge()),
        ("depth", Depth()),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_golden(golden_dir, task, metric):
    for i in range(3):
        metric.update(*published(f"metrics/{i}", task))
    figures = metric.compute()
    stored = json.loads((golden_dir / "metrics.json").read_text())[task]
    for key, value in stored.items():
        assert figures["maxF_paper" if key == "maxF" else key] == pytest.approx(value, rel=1e-6), key


@each_metric
def test_definition(name):
    map, label = batch_of(name)
    metric = METRICS[name]()
    metric.update(map, label)
    figures = metric.compute()
    for key, value in expected_of(name, map, label).items():
        tolerance = {"abs": 0.0051} if key == "median" else {"rel": 1e-5}
        assert figures[key] == pytest.approx(value, **tolerance), key


@each_metric
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_split_gives_the_same_figures(name, size):
    """Batches of `size`, dealt out to three processes and merged, beside everything at once."""
    map, label = batch_of(name, shape=(7, 6, 5))
    whole = METRICS[name]()
    whole.update(map, label)
    ranks = [METRICS[name]() for _ in range(3)]
    for i in range(0, 7, size):
        ranks[i % 3].update(map[i : i + size], label[i : i + size])
    merged = METRICS[name]()
    for rank in ranks:
        merged.merge(rank.state())
    for key, total in whole.state().items():
        if key in ("loss", "batches"):  # the published edge loss is defined by batches
            continue
        if total.dtype == torch.int64:
            assert torch.equal(merged.state()[key], total), key
        else:
            torch.testing.assert_close(merged.state()[key], total, rtol=1e-12, atol=0)
    expected, figures = whole.compute(), merged.compute()
    for key in expected.keys() - {"loss"}:
        assert figures[key] == pytest.approx(expected[key], rel=1e-12, nan_ok=True), key


def test_published_edge_loss_is_a_mean_over_batches():
    map, label = batch_of("edge")
    metric = Edge()
    metric.update(map[:1], label[:1])
    metric.update(map[1:], label[1:])
    parts = [oracles.edge(map[i].numpy(), label[i].numpy())["loss"] for i in (slice(0, 1), slice(1, 3))]
    assert metric.compute()["loss"] == pytest.approx(np.mean(parts), rel=1e-6)


@each_metric
def test_nothing_seen_is_not_a_number(name):
    metric = METRICS[name]()
    map, label = batch_of(name)
    metric.update(map, torch.full_like(label, 255))
    assert metric.compute() and all(isinstance(v, float) for v in metric.compute().values())
    headline = next(iter(metric.compute().values()))
    assert math.isnan(headline)


@each_metric
def test_state_is_a_copy(name):
    metric = METRICS[name]()
    metric.update(*batch_of(name))
    state = metric.state()
    before = metric.compute()
    for value in state.values():
        value += 1
    assert metric.compute() == pytest.approx(before, nan_ok=True)


@each_metric
def test_label_values_without_meaning(name):
    map, label = batch_of(name)
    metric, other = METRICS[name](), METRICS[name]()
    metric.update(map, label)
    other.update(map, torch.where(label == 255, math.nan, label.double()))
    assert other.compute() == pytest.approx(metric.compute(), rel=1e-6, nan_ok=True)


@each_metric
def test_does_not_wait_for_the_device(name):
    """Tensors on `meta` have no values: whatever needs one (item, bincount, boolean indexing) raises."""
    metric, (map, label) = METRICS[name](), batch_of(name)
    metric.update(map.to("meta"), label.to("meta"))
    assert all(v.device.type == "meta" for v in metric.state().values())


@pytest.mark.parametrize("name", ["maxF", "pixelF", "edge", "angular", "depth", "number"])
def test_half_precision_maps(name):
    map, label = batch_of(name)
    metric, other = METRICS[name](), METRICS[name]()
    metric.update(map.bfloat16(), label)
    other.update(map.bfloat16().float(), label)
    assert metric.compute() == other.compute()


@each_metric
def test_wrong_arguments_are_named(name):
    metric, (map, label) = METRICS[name](), batch_of(name)
    title = type(metric).__name__
    with pytest.raises(TypeError, match=rf"^{title}\.update: map must be .* of decoded maps, got"):
        metric.update(map.float() if metric.integer_map else map.long(), label)
    with pytest.raises(TypeError, match=rf"^{title}\.update: map must be .*, got (float32|int64) \["):
        metric.update(map.numpy(), label)
    with pytest.raises(ValueError, match=rf"^{title}\.update: map must be .* of decoded maps, got"):
        metric.update(map[None], label)
    with pytest.raises(ValueError, match=rf"^{title}\.update: label_BKHW must be .* \[3, ., 5, 7\]"):
        metric.update(map, label[..., :6])
    with pytest.raises(ValueError, match=rf"^{title}\.update: label_BKHW must be"):
        metric.update(map, label[:, 0])
    with pytest.raises(TypeError, match=rf"^{title}\.update: label_BKHW must be"):
        metric.update(map, label.tolist())
    with pytest.raises(ValueError, match=rf"^{title}\.merge: state must be .*, got"):
        metric.merge({"else": torch.zeros(())})
    assert math.isnan(next(iter(metric.compute().values())))  # a refused batch leaves no trace


def test_absent_classes():
    map, label = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[[0, 0, 1, 0]]]])
    published, skipping = MeanIoU(("a", "b", "c")), MeanIoU(("a", "b", "c"), absent="skip")
    for metric in (published, skipping):
        metric.update(map, label)
    assert published.compute() == pytest.approx(
        {"mIoU": 100 * (2 / 3 + 1 / 2) / 3, "pixel_acc": 75, "IoU/a": 200 / 3, "IoU/b": 50, "IoU/c": 0}
    )
    assert skipping.compute()["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert math.isnan(skipping.compute()["IoU/c"])
    with pytest.raises(ValueError, match="MeanIoU: absent must be 'zero' or 'skip', got 'nan'"):
        MeanIoU(3, absent="nan")


def test_ids_outside_the_classes():
    metric = MeanIoU(2)
    metric.update(torch.tensor([[[0, 7, -1, 1]]]), torch.tensor([[[[0, 0, 1, 9]]]]))
    assert metric.compute()["pixel_acc"] == pytest.approx(100 / 3)  # label 9 does not count
    assert metric.compute()["IoU/0"] == pytest.approx(50) and metric.compute()["IoU/1"] == 0


def test_probability_that_is_not_a_number_is_not_positive():
    metric = MaxF()
    metric.update(torch.tensor([[[math.nan, 0.9]]]), torch.tensor([[[[0, 1]]]]))
    assert metric.compute()["maxF"] == 100


def test_angles_keep_their_precision_near_zero():
    metric = Angular()
    tilt = math.radians(0.01)
    label = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    metric.update(torch.tensor([math.sin(tilt), 0.0, math.cos(tilt)]).view(1, 3, 1, 1), label)
    assert metric.compute()["mean"] == pytest.approx(0.01, rel=1e-3)
    metric.update(-label, label)
    assert metric.compute()["mean"] == pytest.approx((180 + 0.01) / 2, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_median(count):
    metric = Angular()
    angle = torch.linspace(3, 170, count).square() / 170
    vectors = torch.stack([angle.deg2rad().sin(), torch.zeros(count), angle.deg2rad().cos()])
    forward = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    metric.update(vectors.view(1, 3, 1, count), forward.expand(1, 3, 1, count))
    assert metric.compute()["median"] == pytest.approx(float(np.median(angle.numpy())), abs=0.0051)
