"""Balanced batches: every task in every batch, over random tables of labels."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.loader import make_loader
from dmtl.data.loading.order import Balanced, earlier, evenly
from dmtl.errors import DataError
from tests.data.conftest import Synthetic
from tests.data.test_loader import CROP, TASKS, equal


@st.composite
def tables(draw):
    """A random table in which every task has a label, scarce or not, and a size of batches."""
    tasks = draw(st.integers(1, 6))
    images = draw(st.integers(tasks, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    matrix = rng.random((images, tasks)) < rng.random(tasks) ** draw(st.integers(1, 4))
    for task in np.flatnonzero(~matrix.any(0)):
        matrix[rng.integers(images), task] = True
    return matrix, draw(st.integers(1, images))


def fewest(matrix: np.ndarray) -> int:
    """Images that together have all tasks, by trying all sets of different rows."""
    patterns = np.unique(matrix, axis=0)
    return next(
        n
        for n in itertools.count(1)
        if any(rows.any(0).all() for rows in map(np.array, itertools.combinations(patterns, n)))
    )


@given(tables(), st.integers(0, 100))
@settings(max_examples=200)
def test_every_batch_has_every_task(table, seed):
    matrix, size = table
    balanced = Balanced(matrix, size)
    if balanced.needed > size:
        return
    batches = len(matrix) // size
    order = balanced.order(np.random.default_rng(seed), batches)
    assert order.shape == (batches * size,) and order.dtype == np.int64
    for batch in order.reshape(batches, size):
        assert matrix[batch].any(0).all() and len(set(batch.tolist())) == size
    assert (order == balanced.order(np.random.default_rng(seed), batches)).all()


@given(tables())
@settings(max_examples=100)
def test_fewest_images_of_a_batch(table):
    matrix = table[0][:12]
    matrix[-1] |= ~matrix.any(0)
    assert Balanced(matrix, 1).needed == fewest(matrix)


@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 3), st.integers(0, 50))
@settings(max_examples=50)
def test_nothing_comes_twice_where_every_task_has_enough(tasks, batches, more, seed):
    """One label for each image and as many of each task as batches: an epoch without repetition."""
    matrix = np.repeat(np.eye(tasks, dtype=bool), batches + more, axis=0)
    order = Balanced(matrix, tasks).order(np.random.default_rng(seed), batches)
    assert (earlier(order) == 0).all()


def test_scarce_images_take_turns():
    matrix = np.zeros((100, 2), bool)
    matrix[:3, 0] = matrix[3:, 1] = True
    order = Balanced(matrix, 10).order(np.random.default_rng(0), 10)
    assert sorted(np.bincount(order)[:3]) == [3, 3, 4] and np.bincount(order)[3:].max() == 1


def test_every_image_is_as_likely_where_all_have_all():
    balanced, rng = Balanced(np.ones((10, 3), bool), 4), np.random.default_rng(0)
    counts = sum(np.bincount(balanced.order(rng, 2), minlength=10) for _ in range(2000))
    places = np.bincount([balanced.order(rng, 2)[0] for _ in range(2000)], minlength=10)
    # 2000 draws with p = 0.8 and 0.1: five standard deviations
    assert abs(counts - 1600).max() < 5 * (2000 * 0.8 * 0.2) ** 0.5
    assert abs(places - 200).max() < 5 * (2000 * 0.1 * 0.9) ** 0.5


@given(st.lists(st.integers(0, 8), max_size=40))
def test_earlier(values):
    assert earlier(np.array(values, int)).tolist() == [values[:i].count(v) for i, v in enumerate(values)]


def scarce(data) -> LabelMatrix:
    """Depth for one image alone, the other tasks in turn."""
    matrix = np.arange(3)[None] == np.arange(len(data))[:, None] % 3
    matrix = np.c_[matrix, np.arange(len(data)) == 0]
    return LabelMatrix(data.ids, TASKS, matrix)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(workers):
    data = Synthetic()
    loader = make_loader(data, scarce(data), CROP, batch_size=4, seed=3, balance=True, workers=workers)
    assert len(loader) == 5
    batches = list(itertools.islice(loader.stream(), 12))
    assert all(batch.present[task].any() and batch.labelled[task] for batch in batches for task in TASKS)
    assert all(batch.labelled == {t: int(on.sum()) for t, on in batch.present.items()} for batch in batches)
    again = make_loader(Synthetic(), scarce(data), CROP, batch_size=4, seed=3, balance=True).stream(7)
    assert all(equal(a, b) for a, b in zip(batches[7:], again))
    assert batches[0].ids != batches[5].ids


def test_a_repeated_image_is_augmented_anew():
    data = Synthetic()
    loader = make_loader(data, scarce(data), CROP, batch_size=4, balance=True)
    first, second = list(loader)[:2]
    rows = [batch.ids.index("i000") for batch in (first, second)]
    assert not (first.image[rows[0]] == second.image[rows[1]]).all()


def test_what_cannot_be_balanced_is_said():
    data = Synthetic()
    with pytest.raises(
        DataError,
        match="balance needs at least 3 images for a label of each of semseg, edge, normals, depth, "
        "got batch_size = 2",
    ):
        make_loader(data, scarce(data), batch_size=2, balance=True)
    nothing = LabelMatrix(data.ids, ["edge", "depth"], np.arange(20)[:, None] < [5, 0])
    with pytest.raises(DataError, match="no visible label of depth, expected one of every task with balance"):
        make_loader(data, nothing, batch_size=4, balance=True)


def test_images_are_evenly_spread_and_no_more_than_there_are():
    assert evenly(10, 2) == [2, 7] and evenly(3, 8) == [0, 1, 2] and evenly(5, 0) == []
