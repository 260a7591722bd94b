"""Measure the angle between predicted and labelled directions.

    angle = 2 atan2(|a - b|, |a + b|),  a and b of unit length

Unlike the arc cosine of a . b, this is precise near 0 and 180 degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmtl.metrics.base import Metric, histogram, ratio, zeros

_WITHIN = (11.25, 22.5, 30.0)
_BINS_PER_DEGREE = 100


def normalise(x_B3HW: Tensor, shortest: float = 1e-12) -> Tensor:
    """Return x / max(|x|, shortest) along dimension 1, with a finite gradient everywhere.

    The norm is written out, because torch's norm over any dimension but the last is 30 times slower on the
    CPU.
    """
    return x_B3HW * x_B3HW.square().sum(1, keepdim=True).clamp(min=shortest**2).rsqrt()


def angle_deg(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Return the angle between two vectors of any length, in degrees, [B, H, W]."""
    a_B3HW, b_B3HW = normalise(a_B3HW), normalise(b_B3HW)
    apart_BHW = (a_B3HW - b_B3HW).square().sum(1).sqrt()
    return torch.atan2(apart_BHW, (a_B3HW + b_B3HW).square().sum(1).sqrt()) * (360 / math.pi)


class Angular(Metric):
    """`mean`, `median`, `rmse` in degrees; `within_11.25`, `within_22.5`, `within_30` in percent of pixels.

    All are computed over the valid pixels of the data set: no component is ignored and the vector is not
    zero. The median is the centre of a histogram bin of 0.01 degree, so it is accurate to 0.005 degree.
    """

    map_channels = 3
    notes = dict.fromkeys(("mean", "median", "rmse"), "degrees")
    notes |= {f"within_{limit:g}": "percent" for limit in _WITHIN}

    def __init__(self, *, ignore: float = 255.0):
        super().__init__(
            {
                "angle": zeros(),
                "square": zeros(),
                "within": zeros(len(_WITHIN), dtype=torch.int64),
                "histogram": zeros(180 * _BINS_PER_DEGREE, dtype=torch.int64),
            },
            ignore=ignore,
            constants={"within": torch.tensor(_WITHIN)},
        )

    def _valid(self, label_BKHW: Tensor) -> Tensor:
        return super()._valid(label_BKHW) & (label_BKHW != 0).any(1)

    def _accumulate(self, map_B3HW: Tensor, label_B3HW: Tensor, valid_BHW: Tensor) -> None:
        # In fp64, so that the sums do not depend on the batch size.
        angle_BHW = angle_deg(map_B3HW.double(), label_B3HW.double())
        bins = 180 * _BINS_PER_DEGREE
        bin_BHW = (torch.where(valid_BHW, angle_BHW, 0) * _BINS_PER_DEGREE).long().clamp(0, bins - 1)
        bin_BHW = torch.where(valid_BHW, bin_BHW, bins)
        angle_BHW = torch.where(valid_BHW, angle_BHW, 0)
        below_BHWT = (angle_BHW[..., None] < self._constants["within"]) & valid_BHW[..., None]
        self._add(
            angle=angle_BHW.sum(),
            square=angle_BHW.square().sum(),
            within=below_BHWT.sum((0, 1, 2)),
            histogram=histogram(bin_BHW, bins + 1)[:bins],
        )

    def compute(self) -> dict[str, float]:
        counts = self._sums["histogram"].cpu()
        n = int(counts.sum())
        figures = {
            "mean": ratio(self._sums["angle"].item(), n),
            "median": self._median(counts, n),
            "rmse": math.sqrt(ratio(self._sums["square"].item(), n)),
        }
        within = self._sums["within"].tolist()
        return figures | {f"within_{t:g}": 100 * ratio(w, n) for t, w in zip(_WITHIN, within, strict=True)}

    @staticmethod
    def _median(counts: Tensor, n: int) -> float:
        if n == 0:
            return float("nan")
        # The two middle pixels (the same one if n is odd), found by rank.
        ranks = torch.tensor([(n - 1) // 2, n // 2])
        bins = torch.searchsorted(counts.cumsum(0), ranks, right=True)
        return ((bins.double() + 0.5) / _BINS_PER_DEGREE).mean().item()
