"""The boundary benchmark: odsF, oisF and AP, as in published multi-task results.

A map E is binarised at 101 thresholds t = 0.001, 0.01, 0.02 .. 0.99, 0.999 and thinned (`thin`). Its pixels
are matched one-to-one with those of the thinned ground truth that are at most `max_dist` image diagonals away
(`boundary_counts`). With the numbers of pairs, of predicted and of true pixels, summed over images,

    precision P = pairs / predicted     recall R = pairs / true
    F = 2 P R / (P + R) = 2 pairs / (predicted + true)

    odsF   the largest F at any single threshold for all images
    oisF   F if each image uses its own best threshold (the lowest of equally good ones)
    AP     sum over r = 0, 0.01 .. 1 of P(r) / 100, where P is linear between the thresholds' (R, P) and
           nothing beyond them

All are in percent, and 0 for 0 / 0. AP follows the Berkeley benchmark, including two peculiarities: the sum
of 101 values is divided by 100, so it can reach 101 %; and a curve with a single recall value (a perfect
binary map) has zero area. If several thresholds have the same recall, the lowest one is used.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dmtl.metrics.base import Metric, zeros
from dmtl.metrics.matching import BOUNDARY, MOST_REACH, UNKNOWN, boundary_counts
from dmtl.metrics.suppression import suppress

MAX_DIST = 0.0075  # of PASCAL-Context, as a fraction of the image diagonal
THRESHOLDS = (0.001, *(i / 100 for i in range(1, 100)), 0.999)


class Boundary(Metric):
    """`odsF_<protocol>`, `oisF_<protocol>`, `AP_<protocol>` (percent) and `ods_threshold_<protocol>`.

    Args:
        protocol: "seism" (published): E is the map after non-maximum suppression (`suppress`), and a pixel is
            predicted if E > t. "raw": E is the map itself, and a pixel is predicted if E >= t.
        max_dist: the largest distance of a pair as a fraction of the image diagonal; published results use
            0.0075 on PASCAL-Context and 0.011 on NYUD-v2.
        ignore: label value of pixels without a label.

    Labels above 0.5 are boundaries and are thinned here. Pixels without a label are not true boundaries.
    Predictions on them are thinned like all others, but only count if they are matched with a true pixel
    nearby. Maps are clamped to [0, 1], and NaN becomes 0. Pixels are counted on the CPU, so `update` waits
    for maps on a GPU. All sums are integers.

    For orientation: on CamVid's 101 validation images, whose edges are derived from class maps, a perfect map
    scores 100 by "raw" and 99.85 by "seism", because suppression fades the border. An offset of one pixel
    costs at most 0.25 points, and noise scores 25.
    """

    def __init__(
        self,
        protocol: Literal["seism", "raw"] = "seism",
        max_dist: float = MAX_DIST,
        *,
        ignore: float = 255.0,
    ):
        if protocol not in ("seism", "raw"):
            raise ValueError(f"Boundary: protocol must be seism or raw, got {protocol}")
        if not max_dist >= 0:
            raise ValueError(
                f"Boundary: max_dist must be a fraction of the image diagonal, 0 or more, got {max_dist}"
            )
        self.protocol, self.max_dist = protocol, float(max_dist)
        means = {"seism": "published: of ridges", "raw": "of the map as it is"}[protocol]
        self.notes = {f"{name}_{protocol}": means for name in ("odsF", "oisF", "AP")}
        self.notes |= {f"ods_threshold_{protocol}": "of odsF"}
        sums = {name: zeros(len(THRESHOLDS), dtype=torch.int64) for name in ("matched", "predicted")}
        totals = ("actual", "best_matched", "best_predicted", "images")
        super().__init__(sums | {name: zeros(dtype=torch.int64) for name in totals}, ignore=ignore)

    def _accumulate(self, map_BHW: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        reach = self.max_dist * math.hypot(*map_BHW.shape[-2:])
        if not 0 <= reach <= MOST_REACH:
            raise ValueError(
                f"Boundary.update: reach must be between 0 and {MOST_REACH:.0f} pixels, got {reach}"
            )
        truth_BHW = torch.where(valid_BHW, (label_BKHW[:, 0] > 0.5) * BOUNDARY, UNKNOWN)
        counts = boundary_counts(
            self._levels(map_BHW.cpu()), truth_BHW.to("cpu", torch.uint8).numpy(), len(THRESHOLDS), reach
        )
        matched_BT, predicted_BT, actual_B = map(torch.from_numpy, counts)
        best_B1 = _f(matched_BT, predicted_BT, actual_B[:, None]).argmax(1, keepdim=True)
        added = dict(
            matched=matched_BT.sum(0),
            predicted=predicted_BT.sum(0),
            actual=actual_B.sum(),
            best_matched=matched_BT.gather(1, best_B1).sum(),
            best_predicted=predicted_BT.gather(1, best_B1).sum(),
            images=torch.tensor(len(actual_B)),
        )
        self._add(**{name: value.to(self._sums[name]) for name, value in added.items()})

    def _levels(self, map_BHW: Tensor) -> np.ndarray:
        """Return the number of thresholds that each pixel reaches, uint8 [B,H,W]."""
        map_BHW = map_BHW.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
        # Round down to multiples of 1/255, like the PNG files that the published program reads.
        map_BHW = (map_BHW * 255).to(torch.uint8).float() / 255
        thresholds = np.asarray(THRESHOLDS, np.float32)
        if self.protocol == "raw":
            return np.searchsorted(thresholds, map_BHW.numpy(), side="right").astype(np.uint8)
        ridges_BHW = np.stack([suppress(map_HW) for map_HW in map_BHW.numpy()]).astype(np.float32)
        return np.searchsorted(thresholds, ridges_BHW, side="left").astype(np.uint8)

    def compute(self) -> dict[str, float]:
        """Return the metrics so far; NaN before the first image."""
        s = {name: value.cpu() for name, value in self._sums.items()}
        names = [f"{name}_{self.protocol}" for name in ("odsF", "oisF", "AP", "ods_threshold")]
        if s["images"] == 0:
            return dict.fromkeys(names, float("nan"))
        f_T = _f(s["matched"], s["predicted"], s["actual"])
        best = int(f_T.argmax())
        ois = _f(s["best_matched"], s["best_predicted"], s["actual"])
        area = _area(s["matched"].numpy(), s["predicted"].numpy(), int(s["actual"]))
        return dict(
            zip(names, (100 * f_T[best].item(), 100 * ois.item(), 100 * area, THRESHOLDS[best]), strict=True)
        )


def _f(matched: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    """Return F, float64; 0 if there are neither predicted nor true pixels."""
    return 2 * matched.double() / (predicted + actual).clamp(min=1)


def _area(matched_T: np.ndarray, predicted_T: np.ndarray, actual: int) -> float:
    """Return the area under the precision-recall curve (module docstring)."""
    recall_R, first_R = np.unique(matched_T / max(actual, 1), return_index=True)
    if len(recall_R) < 2:
        return 0.0
    precision_R = (matched_T / np.maximum(predicted_T, 1))[first_R]
    at = np.arange(101) / 100
    inside = (at >= recall_R[0]) & (at <= recall_R[-1])
    return float(np.interp(at[inside], recall_R, precision_R).sum() / 100)
