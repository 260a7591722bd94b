"""Mirrored, cut and magnified labels of the readers are those of a camera that is mirrored, turned away and
closer: every label is held against the scene cast again at the places that the picture then shows."""

import itertools

import numpy as np
import pytest
import torch

from dmtl.data.benchmarks.detect import open_distribution
from dmtl.data.loading.transforms import HorizontalFlip, RandomScaleCrop
from tests.data import expected
from tests.fixtures import FIXTURES, write_fixture

SIZE, SEED = (64, 96), 2
CROP = (32, 40)
CAST = [name for name in FIXTURES if name != "pascal-context" and not name.endswith("-label")]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    top = tmp_path_factory.mktemp("geometry")
    format = {name: name.removesuffix("-label") for name in FIXTURES if name.endswith("-label")}
    return {
        name: open_distribution(
            write_fixture(name, top / name, 2, 1, SIZE, SEED), "train", None, format.get(name)
        )
        for name in FIXTURES
    }


def coding(name, task):
    """How far a label may be from the scene, because of the bits in which the distribution holds it."""
    if task == "normals":
        return 2 / 255 if name == "nyud-40" else 1e-6
    if task == "depth" and name.startswith("cityscapes"):
        return 0.51 / 256 if name == "cityscapes-raw" else 0.51 / 65535
    return 0


@pytest.mark.parametrize("name", FIXTURES)
def test_two_flips_are_none(opened, name):
    dataset, flip = opened[name], HorizontalFlip(p=1)
    sample = dataset.read(0)
    once = flip(sample, dataset.tasks, np.random.default_rng(0))
    again = flip(once, dataset.tasks, np.random.default_rng(0))
    assert torch.equal(again.image, sample.image) and not torch.equal(once.image, sample.image)
    assert again.labels.keys() == dataset.tasks.keys()
    for task, label in sample.labels.items():
        assert torch.equal(again.labels[task], label) and again.labels[task].dtype == label.dtype
        assert not torch.equal(once.labels[task], label)


@pytest.mark.parametrize("name", CAST)
def test_a_flip_is_a_mirrored_camera(opened, name):
    dataset = opened[name]
    sample = HorizontalFlip(p=1)(dataset.read(1), dataset.tasks, np.random.default_rng(0))
    truth = expected.labels(name, expected.cast("train", 1, SIZE, SEED, mirrored=True))
    for task, label in sample.labels.items():
        label = label.numpy()
        if task == "edge":  # drawn to the left of a change or above it, hence one pixel further once mirrored
            for a, b in ((label[0], truth[task][0]), (truth[task][0], label[0])):
                beside = np.pad(b, ((0, 0), (1, 1)))
                assert (np.maximum(np.maximum(beside[:, 2:], b), beside[:, :-2])[a == 1] == 1).all()
            continue
        known = expected.known(name, task, "train", 1, SIZE, SEED)[:, ::-1]
        assert (label[:, ~known] == 255).all()
        np.testing.assert_allclose(label[:, known], truth[task][:, known], atol=coding(name, task), rtol=0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.7, 2.5])
@pytest.mark.parametrize("name", CAST)
def test_a_crop_is_a_camera_that_sees_less_from_closer(opened, name, factor, flip):
    """The scene is cast all around the centres of the crop's pixels, half a source pixel far, which is as far
    as the nearest pixel is. Where that is one smooth surface, ids agree and numbers lie between those around.

    A longer lens leaves normals as they are, and what it shows twice as large counts as twice as near.
    """
    dataset = opened[name]
    steps = [RandomScaleCrop(CROP, (factor, factor), max_ratio=1.0), HorizontalFlip(p=float(flip))]
    sample, rng = dataset.read(0), np.random.default_rng(7)
    for step in steps:
        sample = step(sample, dataset.tasks, rng)
    rows, columns = _places(factor, np.random.default_rng(7))
    around = _around(rows, columns, 0.5, flip)
    smooth = np.all([a["surface"] == around[0]["surface"] for a in around], axis=0)
    smooth &= np.ptp([a["normals"] for a in around], axis=0).max(axis=0) < 0.1
    truths = [expected.labels(name, a) for a in around]
    assert sample.size == smooth.shape and smooth.mean() > 0.4
    for task, label in sample.labels.items():
        label = label.numpy().astype(float)
        if task == "edge":
            assert set(np.unique(label)) == {0, 1}
            continue
        known = (label != 255).all(axis=0)
        assert known.mean() > 0.75
        if task == "depth":
            label = label / factor if name.startswith("cityscapes") else label * factor
        values = np.stack([truth[task] for truth in truths])
        slack = coding(name, task) + 0.1 * np.ptp(values, axis=0) + 1e-5
        if task == "semseg":
            slack = 0
        within = (values.min(axis=0) - slack <= label) & (label <= values.max(axis=0) + slack)
        assert within.all(axis=0)[smooth & known].all()


@pytest.mark.parametrize("name", ["nyud-40", "nyud-40-mt"])
def test_edges_of_a_crop_lie_where_things_meet(opened, name):
    for factor in (0.5, 1.0, 2.0):
        dataset = opened[name]
        crop = RandomScaleCrop(CROP, (factor, factor), max_ratio=1.0)
        edge = crop(dataset.read(0), dataset.tasks, np.random.default_rng(7)).labels["edge"][0].numpy()
        rows, columns = _places(factor, np.random.default_rng(7))
        reach = 1.5 + 0.5 / factor  # to the next pixel, and as far as one of the crop reaches in the source
        around = [a["instances"] for a in _around(rows, columns, reach, False)]
        one_thing = np.all([a == around[0] for a in around], axis=0)
        assert (edge[one_thing] == 0).all() and one_thing.mean() > 0.2
        assert edge.mean() > 0.03 and edge[~one_thing].mean() > 3 * edge.mean() * one_thing.mean()


def _places(factor, rng):
    """Rows and columns of the centres of the crop's pixels in the image, as drawn with `rng`."""
    rng.uniform(factor, factor)
    crop = [min(side, round(wish / factor)) for side, wish in zip(SIZE, CROP)]
    out = [min(wish, round(side * factor)) for side, wish in zip(SIZE, CROP)]
    starts = [int(rng.integers(side - part + 1)) for side, part in zip(SIZE, crop)]
    return [s + (np.arange(n) + 0.5) * part / n for s, n, part in zip(starts, out, crop)]


def _around(rows, columns, reach, flip):
    """What is seen at 5x5 places around each, `reach` source pixels far."""
    if flip:
        columns = SIZE[1] - columns[::-1]
    steps = np.linspace(-reach, reach, 5)
    return [
        expected.cast("train", 0, SIZE, SEED, rows + dy, columns + dx, mirrored=flip)
        for dy, dx in itertools.product(steps, steps)
    ]
