"""Thinning against its definition pixel by pixel, on every instruction set and without the native core."""

from __future__ import annotations

import numpy as np
import pytest

from dmtl.metrics.morphology import outline, thin


def thinned(mask: np.ndarray) -> np.ndarray:
    """Lam, Lee and Suen's conditions as they stand in the paper, one pixel at a time."""
    inside = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    around = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    quiet, second = 0, False
    while quiet < 2:
        gone = set()
        for y, x in inside:
            n = [None] + [(y + dy, x + dx) in inside for dy, dx in around]
            crossings = sum(not n[i] and (n[i + 1] or n[i % 8 + 2]) for i in (1, 3, 5))
            crossings += not n[7] and (n[8] or n[1])
            sides = sum(n[i] or n[i + 1] for i in (1, 3, 5, 7))
            corners = sum(n[i] or n[i + 1] for i in (2, 4, 6)) + (n[8] or n[1])
            kept = (n[6] or n[7] or not n[4]) and n[5] if second else (n[2] or n[3] or not n[8]) and n[1]
            if crossings == 1 and 2 <= min(sides, corners) <= 3 and not kept:
                gone.add((y, x))
        inside -= gone
        quiet, second = 0 if gone else quiet + 1, not second
    out = np.zeros_like(mask)
    for y, x in inside:
        out[y, x] = True
    return out


def masks() -> list[np.ndarray]:
    """Noise of all densities, blobs, bands and grids; widths around the 64 pixels of a word."""
    rng = np.random.default_rng(7)
    found = [np.ones((1, 1), bool), np.zeros((3, 4), bool), np.ones((1, 130), bool), np.ones((66, 2), bool)]
    for shape in ((9, 63), (17, 64), (12, 65), (30, 129), (64, 20), (23, 31)):
        found += [rng.random(shape) < density for density in (0.1, 0.5, 0.9)]
        y, x = np.mgrid[: shape[0], : shape[1]]
        wave = np.sin(y / 3 + rng.random()) + np.cos(x / 4 + rng.random()) + np.sin((x + y) / 5)
        found += [wave > 0, np.abs(wave) < 0.4, np.ones(shape, bool), (x % 6 < 2) | (y % 7 < 3)]
    return found


def test_thin_on_instruction_sets(solver):
    for mask in masks():
        given = mask.copy()
        np.testing.assert_array_equal(thin(mask), thinned(mask))
        np.testing.assert_array_equal(mask, given)


def test_thin_by_hand():
    """A bar of three rows leaves its middle; a diagonal is thin already."""
    bar = np.zeros((5, 9), bool)
    bar[1:4, 1:8] = True
    expected = np.zeros_like(bar)
    expected[2, 2:7] = True
    np.testing.assert_array_equal(thin(bar), expected)
    line = np.eye(7, dtype=bool)
    np.testing.assert_array_equal(thin(line), line)


def test_thin_takes_views():
    mask = np.random.default_rng(0).random((40, 50)) < 0.7
    np.testing.assert_array_equal(thin(mask[::2, ::-1]), thin(mask[::2, ::-1].copy()))
    assert thin(np.zeros((0, 5), bool)).shape == (0, 5)


def test_outline_by_hand():
    ids = np.array([[1, 1, 2], [1, 1, 2], [3, 1, 1]])
    np.testing.assert_array_equal(outline(ids), [[0, 1, 0], [1, 1, 1], [1, 0, 0]])
    assert not outline(np.full((1, 1), 4)).any()
    assert outline(np.array([[0, 255]], np.uint8)).tolist() == [[True, False]]


def test_errors():
    with pytest.raises(TypeError, match=r"thin: mask_HW must be a bool array \[H, W\], got uint8 \[2, 2\]"):
        thin(np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"thin: .* got bool \[2\]"):
        thin(np.ones(2, bool))
    with pytest.raises(ValueError, match=r"outline: ids_HW must be an array \[H, W\], got int64 \[3\]"):
        outline(np.zeros(3, np.int64))
