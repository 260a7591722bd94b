"""Thin boundaries and outline segments as boundary benchmarks do.

Thinning is the two-subiteration algorithm of L. Lam, S.-W. Lee and C. Y. Suen, "Thinning methodologies - a
comprehensive survey", IEEE PAMI 14 (1992), p. 879, repeated until nothing changes. With the neighbours of a
pixel x1 .. x8, counter-clockwise from the right one, a subiteration deletes pixels that satisfy

    G1  exactly one i in 1 .. 4 has x_{2i-1} = 0 and (x_{2i} = 1 or x_{2i+1} = 1)
    G2  2 <= min(sum_k x_{2k-1} | x_{2k}, sum_k x_{2k} | x_{2k+1}) <= 3
    G3  (x2 | x3 | ~x8) & x1 = 0     in the first,   (x6 | x7 | ~x4) & x5 = 0     in the second

Pixels outside the image are 0. MATLAB's bwmorph(mask, 'thin', Inf) and scikit-image's `thin` give the same
result.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from dmtl.metrics.base import describe
from dmtl.runtime import native

# Offsets (y, x) of x1 .. x8.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(mask_HW: np.ndarray) -> np.ndarray:
    """Thin the mask to lines that are one pixel wide.

    Args:
        mask_HW: bool [H, W].

    Returns:
        bool [H, W], a subset of the mask.

    Raises:
        TypeError: another dtype.
        ValueError: another shape.
    """
    if not isinstance(mask_HW, np.ndarray) or mask_HW.dtype != bool:
        raise TypeError(f"thin: mask_HW must be a bool array [H, W], got {describe(mask_HW)}")
    if mask_HW.ndim != 2:
        raise ValueError(f"thin: mask_HW must be a bool array [H, W], got {describe(mask_HW)}")
    core = native.core()
    if core is None:
        return _thin_numpy(mask_HW)
    mask_HW = np.ascontiguousarray(mask_HW)
    out_HW = np.empty_like(mask_HW)
    h, w = mask_HW.shape
    core.call("thin", 0, 1, dict(out=out_HW.ctypes.data, mask=mask_HW.ctypes.data, h=h, w=w))
    return out_HW


def outline(ids_HW: np.ndarray) -> np.ndarray:
    """Return where the id of a pixel differs from that of its right, lower or lower right neighbour.

    This is the Berkeley benchmark's seg2bmap at full size.

    Args:
        ids_HW: ids of segments [H, W], of any dtype that can be compared.

    Returns:
        bool [H, W].

    Raises:
        ValueError: another shape.
    """
    if ids_HW.ndim != 2:
        raise ValueError(f"outline: ids_HW must be an array [H, W], got {describe(ids_HW)}")
    out_HW = np.zeros(ids_HW.shape, bool)
    out_HW[:, :-1] |= ids_HW[:, :-1] != ids_HW[:, 1:]
    out_HW[:-1] |= ids_HW[:-1] != ids_HW[1:]
    out_HW[:-1, :-1] |= ids_HW[:-1, :-1] != ids_HW[1:, 1:]
    return out_HW


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return for both subiterations which neighbourhoods (bit i - 1 is x_i) are deleted: two bool [256]."""
    code = np.arange(256)
    x = [
        (code >> (i - 1) & 1).astype(bool) for i in (8, 1, 2, 3, 4, 5, 6, 7, 8, 1)
    ]  # x[i] is x_i, x[9] is x_1
    entered = sum((~x[i] & (x[i + 1] | x[i + 2])).astype(int) for i in (1, 3, 5, 7))
    pairs = [sum((x[i] | x[i + 1]).astype(int) for i in first) for first in ((1, 3, 5, 7), (2, 4, 6, 8))]
    fewest = np.minimum(*pairs)
    either = (entered == 1) & (fewest >= 2) & (fewest <= 3)
    return either & ~((x[2] | x[3] | ~x[8]) & x[1]), either & ~((x[6] | x[7] | ~x[4]) & x[5])


def _thin_numpy(mask_HW: np.ndarray) -> np.ndarray:
    """Thin without the native core."""
    h, w = mask_HW.shape
    padded = np.pad(mask_HW, 1)
    inner_HW = padded[1:-1, 1:-1]
    while True:
        before = np.count_nonzero(inner_HW)
        for table in _tables():
            code_HW = np.zeros((h, w), np.uint8)
            for bit, (dy, dx) in enumerate(_NEIGHBOURS):
                code_HW |= padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w].astype(np.uint8) << np.uint8(bit)
            inner_HW &= ~table[code_HW]
        if np.count_nonzero(inner_HW) == before:
            return inner_HW.copy()
