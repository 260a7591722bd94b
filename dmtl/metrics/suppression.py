"""Apply non-maximum suppression to boundary maps, as the published protocol does before thresholding.

After P. Dollar and C. L. Zitnick, "Fast edge detection using structured forests" (2015) and its toolbox:

    S       = E smoothed by a triangle of radius 4, [1 2 3 4 5 4 3 2 1] / 25 along either axis, with
              mirrored borders
    normal  = direction across the boundary: tan = S_yy sign(-S_xy) / (S_xx + 1e-5)
    E       = 0 where 1.01 E is less than E (bilinear) one pixel along the normal on either side
    E       = E times 0, 1/5 .. 4/5 on the five outermost rows and columns (fewer in images below 10 pixels)

Derivatives are central differences, one-sided at the border. Everything is computed in float64 and without
trigonometric functions, so that the native core and NumPy give the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
import torch

from dmtl.runtime import native

TRIANGLE = 4  # radius of the smoothing
MARGIN = 5  # boundaries fade out towards the border over this number of pixels
GENEROSITY = 1.01


def suppress(map_HW: np.ndarray) -> np.ndarray:
    """Keep only the ridges of a boundary map; everything else becomes 0.

    Args:
        map_HW: float [H, W].

    Returns:
        float64 [H, W].
    """
    map_HW = np.ascontiguousarray(map_HW, np.float64)
    if not map_HW.size:
        return map_HW.copy()
    h, w = map_HW.shape
    margin = min(MARGIN, h // 2, w // 2)
    core = native.core()
    if core is None:
        return _ridges(map_HW) * _fading(h, margin)[:, None] * _fading(w, margin)
    out_HW = np.empty_like(map_HW)
    fields = dict(
        out=out_HW.ctypes.data, map=map_HW.ctypes.data, h=h, w=w, margin=margin, generosity=GENEROSITY
    )
    core.call("suppress", 0, torch.get_num_threads(), fields)
    return out_HW


def _ridges(map_HW: np.ndarray) -> np.ndarray:
    """Return the map where it is not less than its neighbours across the boundary, and 0 elsewhere."""
    y, x = np.nonzero(map_HW)
    across, along, value = (field_HW[y, x] for field_HW in (*_normal(map_HW), map_HW))
    length = np.sqrt(across * across + along * along)
    known = length > 0
    length = np.where(known, length, 1)
    step_y, step_x = along / length, np.where(known, across / length, 1)
    kept = np.ones(len(y), bool)
    for sign in (-1, 1):
        kept &= GENEROSITY * value >= _bilinear(map_HW, y + sign * step_y, x + sign * step_x)
    out_HW = np.zeros_like(map_HW)
    out_HW[y[kept], x[kept]] = value[kept]
    return out_HW


def _normal(map_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a vector (x, y) of any length that points across the boundary, at each pixel."""
    smooth_HW = _smooth(_smooth(map_HW).T).T
    s_y, s_x = _difference(smooth_HW.T).T, _difference(smooth_HW)
    s_xx, s_xy, s_yy = _difference(s_x), _difference(s_x.T).T, _difference(s_y.T).T
    return s_xx + 1e-5, s_yy * np.sign(-s_xy)


def _smooth(x_HW: np.ndarray) -> np.ndarray:
    """Smooth along the first axis by the triangle, which is the convolution of two running means of 5."""
    x_HW = np.pad(x_HW, ((TRIANGLE, TRIANGLE), (0, 0)), mode="symmetric")
    width = TRIANGLE + 1
    for _ in range(2):
        count = len(x_HW) - TRIANGLE
        x_HW = sum((x_HW[i : i + count] for i in range(width)), np.zeros((), x_HW.dtype))
    return x_HW / width**2


def _difference(x_HW: np.ndarray) -> np.ndarray:
    """Differentiate along the second axis."""
    out_HW = np.zeros_like(x_HW)
    if x_HW.shape[1] > 1:
        out_HW[:, 1:-1] = (x_HW[:, 2:] - x_HW[:, :-2]) / 2
        out_HW[:, 0] = x_HW[:, 1] - x_HW[:, 0]
        out_HW[:, -1] = x_HW[:, -1] - x_HW[:, -2]
    return out_HW


def _bilinear(map_HW: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate the map bilinearly at (y, x); outside, repeat its border."""
    h, w = map_HW.shape
    y, x = np.clip(y, 0, max(h - 1.001, 0)), np.clip(x, 0, max(w - 1.001, 0))
    y0, x0 = y.astype(np.int64), x.astype(np.int64)
    down, right = y - y0, x - x0
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    above = map_HW[y0, x0] * (1 - right) + map_HW[y0, x1] * right
    below = map_HW[y1, x0] * (1 - right) + map_HW[y1, x1] * right
    return above * (1 - down) + below * down


def _fading(length: int, margin: int) -> np.ndarray:
    factor = np.ones(length)
    for i in range(margin):
        factor[i], factor[length - 1 - i] = i / margin, i / margin
    return factor
