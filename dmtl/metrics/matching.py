"""Match boundary pixels one-to-one, exactly.

Of all matchings that pair pixels at most D pixels apart, find one that minimises

    sum over pairs of their distance + 100 D * (pixels of both sides without a partner)

This is the cost of the Berkeley benchmark's correspondPixels with its default outlier cost. As there,
distances and costs are integers, in hundredths of a pixel: rint(100 distance), ceil(100 * 100 D). Of
matchings with equal cost, the one with more pairs wins, so the number of pairs depends only on the two masks.
The published program connects outliers at random and may miss the minimum; this one does not. In addition,
pixels can be spare: a spare pixel may have a partner, but costs nothing without one. Predictions on pixels
without a label are spare.

The native core (csrc/include/dmtl/matching.h) updates one matching from threshold to threshold. Without it,
scipy (`pip install scipy`) solves a separate assignment problem for each threshold. The results are equal.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from dmtl.metrics.morphology import thin
from dmtl.runtime import native

NOTHING, BOUNDARY, UNKNOWN = 0, 1, 2  # values of the ground truth in `boundary_counts`
HUNDREDTHS, OUTLIER = 100, 100
MOST_REACH = 20000.0  # largest allowed reach, pixels


def boundary_counts(
    level_BHW: np.ndarray, truth_BHW: np.ndarray, levels: int, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count pairs of predicted and true boundary pixels at every threshold.

    Args:
        level_BHW: uint8; a pixel is predicted at thresholds 0 .. level - 1. Predictions are thinned.
        truth_BHW: uint8, NOTHING, BOUNDARY or UNKNOWN. BOUNDARY pixels are thinned; predictions on UNKNOWN
            pixels are spare.
        levels: number of thresholds T, at most 255.
        reach: D, the largest distance of a pair in pixels, 0 .. MOST_REACH.

    Returns:
        int64 arrays: pairs [B, T], predicted pixels [B, T], true pixels [B]. Spare pixels count as predicted
        only if they have a partner.
    """
    images, h, w = level_BHW.shape
    matched_BT, predicted_BT = np.zeros((2, images, levels), np.int64)
    actual_B = np.zeros(images, np.int64)
    core = native.core()
    if core is None:
        for b in range(images):
            counts = _counts(level_BHW[b], truth_BHW[b], levels, reach)
            matched_BT[b], predicted_BT[b], actual_B[b] = counts
        return matched_BT, predicted_BT, actual_B
    level_BHW, truth_BHW = np.ascontiguousarray(level_BHW), np.ascontiguousarray(truth_BHW)
    threads = torch.get_num_threads()
    fields = dict(
        matched=matched_BT.ctypes.data, predicted=predicted_BT.ctypes.data, actual=actual_B.ctypes.data,
        level=level_BHW.ctypes.data, label=truth_BHW.ctypes.data, images=images, h=h, w=w, levels=levels,
        parts=-(-2 * threads // max(images, 1)) if threads > 1 else 1, reach=reach,
    )  # fmt: skip
    core.call("boundary_counts", 0, threads, fields)
    return matched_BT, predicted_BT, actual_B


def _counts(level_HW: np.ndarray, truth_HW: np.ndarray, levels: int, reach: float) -> tuple:
    """Compute `boundary_counts` of one image without the native core."""
    truth = thin(truth_HW == BOUNDARY)
    matched_T, predicted_T = np.zeros((2, levels), np.int64)
    for t in range(levels):
        if t and not (level_HW == t).any():  # same map as at the threshold below
            matched_T[t], predicted_T[t] = matched_T[t - 1], predicted_T[t - 1]
            continue
        predicted = thin(level_HW > t)
        matched_T[t], uncounted = _assign(predicted, truth, reach, truth_HW == UNKNOWN)
        predicted_T[t] = predicted.sum() - uncounted
    return matched_T, predicted_T, truth.sum()


def _assign(a_HW: np.ndarray, b_HW: np.ndarray, reach: float, spare_HW: np.ndarray) -> tuple[int, int]:
    """Match two masks by solving a sparse assignment problem with scipy.

    Returns:
        The number of pairs, and the number of spare pixels without a partner.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import min_weight_full_bipartite_matching
        from scipy.spatial import cKDTree
    except ImportError as error:
        why = "; ".join(native.why_no_core())
        raise ImportError(f"matching boundaries needs the native core ({why}) or scipy: {error}") from error
    a, b = np.argwhere(a_HW), np.argwhere(b_HW)
    m, n = len(a), len(b)
    outlier = math.ceil(HUNDREDTHS * OUTLIER * reach)
    spare = spare_HW[a_HW]
    alone = outlier * np.concatenate([~spare, np.ones(n, np.int64)])
    if not m or not n:
        return 0, int(spare.sum())
    near = cKDTree(a).sparse_distance_matrix(cKDTree(b), reach + 1, output_type="coo_matrix")
    i, j = near.row, near.col
    square = ((a[i] - b[j]) ** 2).sum(1)
    i, j, square = (x[square <= reach * reach] for x in (i, j, square))
    distance = np.rint(HUNDREDTHS * np.sqrt(square)).astype(np.int64)
    # Each pixel has its own outlier, to which it can be assigned at a cost; the outliers of paired pixels are
    # assigned to each other for free. Costs are doubled and a pair costs one less, so that of equal costs the
    # matching with more pairs wins. All costs are raised by 2, because scipy reads 0 as "no edge".
    rows = np.concatenate([i, np.arange(m), m + np.arange(n), m + j])
    columns = np.concatenate([j, n + np.arange(m), np.arange(n), n + i])
    costs = np.concatenate([2 * distance - 1, 2 * alone, np.zeros_like(distance)]) + 2.0
    matrix = coo_array((costs, (rows, columns)), shape=(m + n, m + n)).tocsr()
    chosen = min_weight_full_bipartite_matching(matrix)
    paired = chosen[1][np.argsort(chosen[0])[:m]] < n
    return int(paired.sum()), int((spare & ~paired).sum())
