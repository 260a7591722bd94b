"""Ridges of boundary maps, pixel by pixel with the angles that the module does without."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmtl.metrics.suppression import suppress
from dmtl.runtime import native


def ridges(e: np.ndarray) -> np.ndarray:
    h, w = e.shape

    def mirrored(i: int, n: int) -> int:
        """Index i of a row of n continued by its mirror images: .. 1 0 | 0 1 .. n-1 | n-1 n-2 .."""
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    def smooth(y: int, x: int) -> float:
        weights = [(d, (5 - abs(d)) / 25) for d in range(-4, 5)]
        return sum(
            a * b * e[mirrored(y + dy, h), mirrored(x + dx, w)] for dy, a in weights for dx, b in weights
        )

    def along(f: np.ndarray, axis: int) -> np.ndarray:
        return np.gradient(f, axis=axis) if f.shape[axis] > 1 else np.zeros_like(f)

    def at(y: float, x: float) -> float:
        y, x = min(max(y, 0), max(h - 1.001, 0)), min(max(x, 0), max(w - 1.001, 0))
        y0, x0 = int(y), int(x)
        corners = (
            [(y0, y0 + 1 - y), (min(y0 + 1, h - 1), y - y0)],
            [(x0, x0 + 1 - x), (min(x0 + 1, w - 1), x - x0)],
        )
        return sum(a * b * e[j, i] for j, a in corners[0] for i, b in corners[1])

    s = np.array([[smooth(y, x) for x in range(w)] for y in range(h)])
    s_xx, s_yy = along(along(s, 1), 1), along(along(s, 0), 0)
    s_xy = along(along(s, 1), 0)
    out = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            angle = math.atan(s_yy[y, x] * np.sign(-s_xy[y, x]) / (s_xx[y, x] + 1e-5)) % math.pi
            step = math.sin(angle), math.cos(angle)
            rival = max(at(y - step[0], x - step[1]), at(y + step[0], x + step[1]))
            margin = min(5, h // 2, w // 2)
            border = [min(i, n - 1 - i) / margin if margin else 1 for i, n in ((y, h), (x, w))]
            out[y, x] = e[y, x] * min(border[0], 1) * min(border[1], 1) if 1.01 * e[y, x] >= rival else 0
    return out


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (6, 6), (9, 4), (17, 23), (30, 21)])
def test_pixel_by_pixel_on_instruction_sets(shape, solver):
    rng = np.random.default_rng(sum(shape))
    y, x = np.mgrid[: shape[0], : shape[1]]
    for e in (rng.random(shape), np.exp(-((y + x / 2 - 12) ** 2) / 4) * rng.uniform(0.9, 1, shape)):
        np.testing.assert_allclose(suppress(e), ridges(e), atol=1e-12)


def test_slanted_line(solver):
    """A blurred line keeps its crest alone: one or two pixels in every column, where it is largest."""
    y, x = np.mgrid[:40, :60]
    e = np.exp(-((y - 10 - x / 3) ** 2) / 6)
    kept = suppress(e)[:, 6:-6] > 0.1
    assert ((kept.sum(0) >= 1) & (kept.sum(0) <= 2)).all()
    assert kept[e[:, 6:-6].argmax(0), np.arange(48)].all()


def test_border_fades(solver):
    """A crest on the third column keeps two fifths of its value, and nothing on the outermost rows."""
    e = np.zeros((20, 20))
    e[:, 2] = 0.5
    kept = suppress(e)
    np.testing.assert_allclose(kept[5:-5, 2], 0.2)
    np.testing.assert_allclose(kept[:6, 2], [0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert not np.delete(kept, 2, 1).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 1), (64, 100), (33, 129)])
def test_same_bits_without_native_core(shape, monkeypatch):
    if native.core() is None:
        pytest.skip(native.why_no_core()[0])
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    maps = [rng.random(shape), np.ones(shape), np.floor(rng.random(shape) * 4) / 255, (x + y) % 7 / 7.0]
    found = [suppress(e) for e in maps]
    monkeypatch.setattr(native, "core", lambda: None)
    for e, native_e in zip(maps, found, strict=True):
        np.testing.assert_array_equal(suppress(e), native_e)


def test_empty_image(solver):
    assert suppress(np.zeros((0, 4))).shape == (0, 4)
