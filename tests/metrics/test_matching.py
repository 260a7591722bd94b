"""The matching of boundary pixels against every matching there is (tiny sets) and scipy's assignment."""

from __future__ import annotations

import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dmtl.metrics.matching import BOUNDARY, UNKNOWN, boundary_counts
from dmtl.runtime import native

from .test_morphology import thinned


def assigned(a: np.ndarray, b: np.ndarray, reach: float, spare: np.ndarray | None = None) -> tuple:
    """Pairs, cost, spare pixels of a left alone, by a dense assignment: hundredths of a pixel, each pixel
    with an outlier of its own. A pair costs a little less than its distance, so that more pairs win a tie."""
    p, q = np.argwhere(a), np.argwhere(b)
    m, n = len(p), len(q)
    if m + n == 0:
        return 0, 0.0, 0
    outlier, never = math.ceil(10000 * reach), 1e12
    square = ((p[:, None] - q[None]) ** 2).sum(-1)
    costs = np.full((m + n, m + n), never)
    costs[:m, :n] = np.where(square <= reach**2, np.rint(100 * np.sqrt(square)) - 2.0**-20, never)
    free = np.zeros(m, bool) if spare is None else spare[a]
    costs[:m, n:] = np.where(np.eye(m, dtype=bool), np.where(free, 0, outlier), never)
    costs[m:, :n] = np.where(np.eye(n, dtype=bool), outlier, never)
    costs[m:, n:] = 0
    rows, columns = linear_sum_assignment(costs)
    pairs, cost = ((rows < m) & (columns < n)).sum(), round(costs[rows, columns].sum()) / 100
    return int(pairs), cost, int((free & (columns[:m] >= n)).sum())


def enumerated(a: np.ndarray, b: np.ndarray, reach: float, spare: np.ndarray | None = None) -> tuple:
    """Pairs, cost, spare pixels of a left alone, by trying every matching."""
    free = np.zeros(a.sum(), bool) if spare is None else spare[a]
    p, q = [tuple(map(int, x)) for x in np.argwhere(a)], [tuple(map(int, x)) for x in np.argwhere(b)]
    outlier = math.ceil(10000 * reach)

    @cache
    def best(i: int, taken: int) -> tuple[int, int, int]:
        """(cost, minus pairs, spare pixels alone) of p[i:] when the bits of `taken` are gone."""
        if i == len(p):
            return outlier * (len(q) - taken.bit_count()), 0, 0
        cost, pairs, alone = best(i + 1, taken)
        options = [(cost + outlier * (not free[i]), pairs, alone + int(free[i]))]
        for j, (y, x) in enumerate(q):
            distance = math.dist(p[i], (y, x))
            if not taken >> j & 1 and distance <= reach:
                cost, pairs, alone = best(i + 1, taken | 1 << j)
                options.append((cost + round(100 * distance), pairs - 1, alone))
        return min(options)

    cost, pairs, alone = best(0, 0)
    return -pairs, cost / 100, alone


def matched(a: np.ndarray, b: np.ndarray, reach: float, spare: np.ndarray | None = None) -> tuple[int, int]:
    """Pairs, spare pixels of a left alone, as `boundary_counts` finds them. Both sides must be thin, and no
    pixel of b spare."""
    truth = np.where(b, BOUNDARY, 0 if spare is None else UNKNOWN * spare).astype(np.uint8)
    pairs, predicted, actual = boundary_counts(a[None].astype(np.uint8), truth[None], 1, reach)
    assert actual[0] == b.sum()
    return int(pairs[0, 0]), int(a.sum() - predicted[0, 0])


def cases(count: int, side: int, density: float, seed: int):
    """Random pairs of thin masks, a reach, and spare pixels: none in every third case."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        h, w = rng.integers(1, side + 1), rng.integers(1, side + 1)
        a, b = (thinned(rng.random((h, w)) < rng.random() * density) for _ in range(2))
        reach = float(rng.choice([0, 1, 1.5, 2.3, 4.0, 5.43]))
        yield a, b, reach, None if case % 3 == 0 else (rng.random((h, w)) < rng.random()) & ~b


def test_tiny_sets_on_instruction_sets(solver):
    tried = 0
    for a, b, reach, spare in cases(300, 5, 0.6, seed=1):
        if b.sum() <= 8:
            assert matched(a, b, reach, spare) == enumerated(a, b, reach, spare)[::2]
            tried += 1
    assert tried > 200


def test_random_sets_on_instruction_sets(solver):
    for a, b, reach, spare in cases(150, 14, 0.5, seed=2):
        assert matched(a, b, reach, spare) == assigned(a, b, reach, spare)[::2]


def test_wide_rows(solver):
    """Rows of more than one word of 64 pixels, windows of more than one word."""
    rng = np.random.default_rng(3)
    for reach in (5.0, 40.0, 80.0):
        a, b = (thinned(rng.random((4, 200)) < 0.1) for _ in range(2))
        assert matched(a, b, reach) == assigned(a, b, reach)[::2]


def test_oracles_agree():
    for a, b, reach, spare in cases(100, 4, 0.6, seed=4):
        assert assigned(a, b, reach, spare) == enumerated(a, b, reach, spare)


def test_coincident_pixels_need_not_pair(solver):
    """a at 2 and 5, b at 0 and 2. Paired, the two at 2 would leave two outliers: 600 instead of 2 + 3."""
    a, b = np.zeros((2, 1, 6), bool)
    a[0, [2, 5]] = True
    b[0, [0, 2]] = True
    assert matched(a, b, 3.0) == (2, 0)


def test_spare_pixels(solver):
    """b at 0 and 9. Of a, 1 and 2 may be partners of the first: the one that is not spare, though it is
    farther away; the spare pixel at 5 is too far from all and costs nothing."""
    a, b, spare = np.zeros((3, 1, 10), bool)
    a[0, [1, 2, 5]] = True
    b[0, [0, 9]] = True
    spare[0, [1, 5]] = True
    assert matched(a, b, 3.0, spare) == (1, 2)
    spare[0, 2] = True
    assert matched(a, b, 3.0, spare) == (1, 2)
    assert matched(a, b, 3.0) == (1, 0)


@pytest.mark.parametrize(
    ("dy", "dx", "pairs", "found"),
    [(0, 3, 100, 100), (0, 3, 200, 200), (0, 3, 201, 200), (1, 2, 267, 267), (1, 2, 268, 267)],
)
def test_more_pairs_are_not_always_worth_it(solver, dy, dx, pairs, found):
    """All but the first of b and the last of a coincide. One pair more than those shifts all of them by 3
    (or 2.24) pixels, which pays while it costs no more than two outliers, 600."""
    a, b = np.zeros((2, dy * pairs + 1, dx * pairs + 1), bool)
    step = np.arange(pairs + 1)
    a[dy * step[1:], dx * step[1:]] = True
    b[dy * step[:-1], dx * step[:-1]] = True
    assert matched(a, b, 3.0) == (found, 0)


def test_counts_on_instruction_sets(solver):
    """Every threshold on its own, with thinning and masks made another way."""
    rng = np.random.default_rng(5)
    levels = 9
    for h, w in ((1, 1), (7, 70), (13, 9), (12, 12)):
        wave = rng.random((2, h, w)) + np.sin(np.mgrid[:2, :h, :w].sum(0) / 2)
        level = np.digitize(wave, np.linspace(-0.5, 1.5, levels)).astype(np.uint8)
        level[level == 4] = 5  # two thresholds with the same map
        truth = rng.choice(3, (2, h, w), p=(0.65, 0.25, 0.1)).astype(np.uint8)
        matched, predicted, actual = boundary_counts(level, truth, levels, 2.3)
        for b in range(2):
            boundary = thinned(truth[b] == 1)
            assert actual[b] == boundary.sum()
            for t in range(levels):
                mask = thinned(level[b] > t)
                pairs, _, alone = assigned(mask, boundary, 2.3, truth[b] == 2)
                assert (matched[b, t], predicted[b, t]) == (pairs, mask.sum() - alone)


def test_threads_do_not_matter():
    rng = np.random.default_rng(6)
    level = rng.integers(0, 102, (3, 40, 50)).astype(np.uint8)
    truth = (rng.random((3, 40, 50)) < 0.2).astype(np.uint8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += [
                [boundary_counts(level, truth, 101, 3.0), boundary_counts(level[:1], truth[:1], 101, 3.0)]
            ]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            for x, y in zip(one, two, strict=True):
                np.testing.assert_array_equal(x, y)


def test_errors(monkeypatch):
    mask = np.ones((1, 1), bool)
    monkeypatch.setattr(native, "core", lambda: None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(ImportError, match=r"matching boundaries needs the native core \(.*\) or scipy"):
        matched(mask, mask, 1.0)
