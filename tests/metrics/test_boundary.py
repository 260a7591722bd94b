"""The boundary benchmark: figures by hand, an independent count, CamVid's edges, edge cases, merging."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.metrics import Boundary
from dmtl.runtime import native

from .test_matching import assigned
from .test_morphology import thinned
from .test_suppression import ridges

THRESHOLDS = [0.001] + [i / 100 for i in range(1, 100)] + [0.999]


def score(maps: torch.Tensor, labels: torch.Tensor, protocol: str = "raw", **settings) -> dict[str, float]:
    metric = Boundary(protocol, **settings)
    metric.update(maps, labels[:, None])
    return metric.compute()


def area(recall: list[float], precision: list[float]) -> float:
    """As the benchmark has it: 101 values of the broken line over recall, divided by 100."""
    points = sorted(dict(reversed(list(zip(recall, precision, strict=True)))).items())
    total = 0.0
    for k in range(101):
        r = k / 100
        for (r0, p0), (r1, p1) in itertools.pairwise(points):
            if r0 <= r <= r1:
                total += p0 + (p1 - p0) * (r - r0) / (r1 - r0)
                break
    return total / 100


def expected(maps: np.ndarray, labels: np.ndarray, protocol: str, max_dist: float) -> dict[str, float]:
    """Every threshold of every image from scratch, by other means."""
    reach = max_dist * math.hypot(*maps.shape[1:])
    counts = np.zeros((len(maps), 101, 3))
    for b, (e, y) in enumerate(zip(maps, labels, strict=True)):
        e = np.floor(e.astype(np.float32) * np.float32(255)).astype(np.float32) / np.float32(255)
        e = ridges(e.astype(np.float64)).astype(np.float32) if protocol == "seism" else e
        truth = thinned((y > 0.5) & (y != 255))
        seen = {}
        for t, threshold in enumerate(np.float32(THRESHOLDS)):
            mask = e > threshold if protocol == "seism" else e >= threshold
            if (key := mask.tobytes()) not in seen:
                mask = thinned(mask)
                pairs, _, alone = assigned(mask, truth, reach, y == 255)
                seen[key] = pairs, mask.sum() - alone, truth.sum()
            counts[b, t] = seen[key]
    f = 200 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)
    matched, predicted, actual = counts.sum(0).T
    all_f = 200 * matched / (predicted + actual)
    best = counts[np.arange(len(maps)), f.argmax(1)].sum(0)
    curve = area(list(matched / actual), list(matched / np.maximum(predicted, 1)))
    figures = (all_f.max(), 200 * best[0] / (best[1] + best[2]), 100 * curve, THRESHOLDS[all_f.argmax()])
    return dict(
        zip((f"{n}_{protocol}" for n in ("odsF", "oisF", "AP", "ods_threshold")), figures, strict=True)
    )


def scenes(count: int, h: int, w: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Wavy boundaries with some unknown pixels, and soft, noisy, displaced maps of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    maps, labels = [], []
    for _ in range(count):
        middle = h / 2 + 0.3 * h * np.sin(x / w * rng.uniform(3, 9) + rng.uniform(0, 6))
        label = (np.abs(y - middle) < 1.2).astype(np.float32)
        label[:, : w // 8] = 255
        soft = np.exp(-((y - middle - rng.uniform(-2, 2)) ** 2) / 5) + 0.3 * rng.random((h, w))
        maps.append(np.clip(soft * rng.uniform(0.5, 1), 0, 1)), labels.append(label)
    return torch.from_numpy(np.float32(maps)), torch.from_numpy(np.stack(labels))


@pytest.fixture(params=["core", "scipy"])
def solver(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setattr(native, "core", lambda: None)
    elif native.core() is None:
        pytest.skip(native.why_no_core()[0])


@pytest.mark.parametrize("protocol", ["raw", "seism"])
def test_against_an_independent_count(protocol, solver):
    maps, labels = scenes(3, 24, 33)
    found = score(maps, labels, protocol, max_dist=0.035)
    wanted = expected(maps.numpy(), labels.numpy(), protocol, 0.035)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert 30 < found[f"odsF_{protocol}"] < 98
    assert found[f"odsF_{protocol}"] <= found[f"oisF_{protocol}"] <= 100


def test_by_hand():
    """Ten true pixels in a row. Predicted: six of them at 0.9, two far away at 0.5, two more at 0.3."""
    label, e = torch.zeros(2, 1, 41, 60)
    label[0, 20, 5:24:2] = 1
    e[0, 20, 5:16:2] = 0.9
    e[0, 2, [40, 50]] = 0.5
    e[0, 20, [17, 19]] = 0.3
    found = score(e, label, max_dist=0.01)
    # (R, P) is (0.6, 1) for t > 0.5, (0.6, 0.75) for t > 0.3, (0.8, 0.8) below, (0, 0) above 0.9.
    assert found["odsF_raw"] == pytest.approx(80) and found["oisF_raw"] == pytest.approx(80)
    assert found["ods_threshold_raw"] == 0.001
    below = sum(0.75 * k / 60 for k in range(61))  # of equal recalls the lowest threshold: (0.6, 0.75)
    above = sum(0.75 + 0.05 * k / 20 for k in range(1, 21))
    assert found["AP_raw"] == pytest.approx(below + above)


def test_ods_and_ois_by_hand():
    """Two images of four true pixels: the first is best at high thresholds (four hits at 0.9, four misses at
    0.4), the second at low ones (four hits at 0.4)."""
    label, e = torch.zeros(2, 2, 20, 20)
    label[:, 5, 2:10:2] = 1
    e[0, 5, 2:10:2] = 0.9
    e[0, 15, 2:10:2] = 0.4
    e[1, 5, 2:10:2] = 0.4
    found = score(e, label, max_dist=0.04)
    assert found["odsF_raw"] == pytest.approx(100 * 16 / (12 + 8))  # t <= 0.4; above 2 * 4 / (4 + 8)
    assert found["oisF_raw"] == pytest.approx(100)
    assert found["ods_threshold_raw"] == 0.001


@pytest.mark.parametrize(
    ("protocol", "value", "highest"),
    [
        ("raw", 0.2, 0.2),
        ("seism", 0.2, 0.19),
        ("raw", 0.2035, 0.2),
        ("raw", 0.301, 0.29),
        ("seism", 0.301, 0.29),
    ],
)
def test_thresholds(protocol, value, highest):
    """51/255 = 0.2: raw compares >=, seism >. 0.301 is 76.8 / 255, and 76 / 255 = 0.298."""
    label = torch.zeros(1, 30, 30)
    label[0, 8:22, 15] = 1
    metric = Boundary(protocol, 0.03)
    metric.update(value * label, label[:, None])
    found = metric.state()["matched"] > 0
    assert found.tolist() == [t <= highest for t in THRESHOLDS]


def test_perfect_maps():
    _, labels = scenes(2, 96, 120)
    perfect = (labels == 1).float()
    assert score(perfect, labels)["odsF_raw"] == 100.0
    found = score(perfect, labels, "seism")
    assert 97 < found["odsF_seism"] < 100  # what touches the image's border fades there


@pytest.mark.parametrize("protocol", ["raw", "seism"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (65, 7)])
def test_small_images(protocol, shape):
    ones = torch.ones(2, *shape)
    found = score(ones, ones, protocol, max_dist=0.1)
    assert all(math.isfinite(value) for value in found.values())
    if protocol == "raw":
        assert found["odsF_raw"] == 100


def test_nothing_on_one_side():
    zeros, ones = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    for maps, labels in ((zeros, ones), (ones, zeros), (zeros, zeros), (ones, 255 * ones)):
        found = score(maps, labels)
        assert (found["odsF_raw"], found["oisF_raw"], found["AP_raw"]) == (0, 0, 0)
    assert all(math.isnan(value) for value in Boundary().compute().values())
    strange = torch.tensor([[[math.nan, math.inf, -math.inf, 2.0, -1.0]]])
    state = Boundary("raw", 0.1)
    state.update(strange, torch.ones(1, 1, 1, 5))
    assert (state.state()["predicted"] == 2).all()  # inf and 2 count as 1; NaN and what is below as 0


def test_predictions_on_unknown_pixels():
    """A true line at column 10, unknown right of it. A line one pixel right finds all of it; far right it is
    neither right nor wrong; a second known line on the left takes the partners of the unknown one."""
    label = torch.zeros(1, 20, 40)
    label[:, :, 10], label[:, :, 11:] = 1, 255
    count = int(thinned(label[0].numpy() == 1).sum())
    for columns, predicted, matched in (([11], count, count), ([25], 0, 0), ([8, 11], count, count)):
        maps = torch.zeros_like(label)
        maps[:, :, columns] = 1
        metric = Boundary("raw", 3.0 / math.hypot(20, 40))
        metric.update(maps, label[:, None])
        state = metric.state()
        assert (state["predicted"] == predicted).all() and (state["matched"] == matched).all()
        assert state["actual"] == count > 10


def test_unknown_pixels_count_on_neither_side():
    maps, labels = scenes(1, 40, 64)
    labels[:, :, :8] = 255
    metric = Boundary("raw")
    metric.update(torch.zeros_like(maps).index_fill_(2, torch.arange(6), 1), labels[:, None])
    assert metric.state()["predicted"].sum() == 0
    assert metric.state()["actual"] == thinned(labels[0].numpy() == 1).sum() > 0
    other = maps.clone()
    other[:, :, :4] = 0
    assert score(maps, labels, ignore=-1) != score(other, labels, ignore=-1)
    found, cut = score(maps, labels), score(other, labels)
    assert found["odsF_raw"] == pytest.approx(cut["odsF_raw"], abs=0.5)  # thinning sees a little of them


def test_noise_as_expected():
    """A lone true pixel is found when noise hits its disc of K pixels: with probability 1 - (1 - p)^K."""
    generator = torch.Generator().manual_seed(0)
    side, step, p, reach = 600, 12, 0.01, 4.3
    label = torch.zeros(4, side, side)
    label[:, step // 2 :: step, step // 2 :: step] = 1
    noise = (torch.rand(label.shape, generator=generator) < p).float()
    disc = sum(y * y + x * x <= reach**2 for y in range(-4, 5) for x in range(-4, 5))
    count = int(label.sum())
    hit = 1 - (1 - p) ** disc
    found = score(noise, label, max_dist=reach / math.hypot(side, side))
    matched = count * hit
    wanted = 200 * matched / (count + p * label.numel())
    deviation = 200 * math.sqrt(count * hit * (1 - hit)) / (count + p * label.numel())
    assert abs(found["odsF_raw"] - wanted) < 5 * deviation, (found, wanted, deviation)
    assert 5 * deviation < 0.1 * wanted


def test_batches_processes_and_threads():
    """Any split of the images, and any number of threads, leave equal integers."""
    maps, labels = scenes(5, 30, 41)
    whole, halves, before = Boundary("seism"), [Boundary("seism"), Boundary("seism")], torch.get_num_threads()
    whole.update(maps, labels[:, None])
    try:
        for i in range(5):
            torch.set_num_threads(1 + i % 3)
            halves[i % 2].update(maps[i : i + 1], labels[i : i + 1, None])
    finally:
        torch.set_num_threads(before)
    halves[0].merge(halves[1].state())
    assert {name: value.dtype for name, value in whole.state().items()} == dict.fromkeys(
        whole.state(), torch.int64
    )
    for name, value in whole.state().items():
        assert torch.equal(value, halves[0].state()[name]), name
    assert whole.compute() == halves[0].compute()


def camvid_edges(folder) -> torch.Tensor:
    ids = (folder / "splits" / "val.txt").read_text().split()
    return torch.from_numpy(np.stack([np.array(Image.open(folder / "edge" / f"{i}.png")) for i in ids]))


def test_camvid_edges(camvid_dir):
    """Perfect maps, and maps one pixel off: what is lost lies at the image's border."""
    labels = camvid_edges(camvid_dir)[::10]
    labels[labels == 255] = 0
    perfect = (labels == 1).float()
    for protocol, least in (("raw", 100.0), ("seism", 99.8)):
        assert least <= score(perfect, labels, protocol)[f"odsF_{protocol}"] <= 100
        for axis in (1, 2):
            assert 99.7 <= score(perfect.roll(1, axis), labels, protocol)[f"odsF_{protocol}"] < 100


@pytest.mark.slow
def test_all_camvid_edges(camvid_dir):
    """With unknown pixels: boundaries that end up among them are found there."""
    labels = camvid_edges(camvid_dir)
    assert len(labels) == 101
    perfect = (labels == 1).float()
    for protocol, least, shifted in (("raw", 100.0, 99.0), ("seism", 99.8, 99.0)):
        assert least <= score(perfect, labels, protocol)[f"odsF_{protocol}"] <= 100
        for axis in (1, 2):
            assert shifted <= score(perfect.roll(1, axis), labels, protocol)[f"odsF_{protocol}"] < 100


def test_errors():
    with pytest.raises(ValueError, match="Boundary: protocol must be seism or raw, got cooked"):
        Boundary("cooked")
    with pytest.raises(
        ValueError, match="Boundary: max_dist must be a fraction of the image diagonal, 0 or more, got -1"
    ):
        Boundary(max_dist=-1)
    with pytest.raises(ValueError, match="Boundary.update: reach must be between 0 and 20000 pixels"):
        score(torch.ones(1, 2, 2), torch.ones(1, 2, 2), max_dist=math.inf)
