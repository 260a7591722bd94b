"""Compute errors of numbers, such as depth in metres.

Prediction p, label y, d = p - y, over n valid pixels:

rmse = sqrt(sum d^2 / n)                        abs_err = sum |d| / n
log_rmse = sqrt(sum (ln p - ln y)^2 / n)        abs_rel = sum |d| / y / n        sq_rel = sum d^2 / y / n
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmtl.metrics.base import Metric, ratio, zeros


class Depth(Metric):
    """`rmse` and `abs_err` in the unit of the labels; with `relative`, also `log_rmse`, `abs_rel`, `sq_rel`.

    With `relative`, labels of 0 or less are skipped and, as published, predictions of 0 or less become 1e-9.
    `compute` returns the metric `first` as the first one.

    Args:
        ignore: label value of pixels to skip. The default is the published one; a task passes its own.
        relative: also compute the relative metrics.
        first: name of the main metric.
    """

    notes = {"rmse": "unit of the label", "abs_err": "unit of the label"}

    def __init__(self, *, ignore: float = 255.0, relative: bool = True, first: str = "rmse"):
        self.relative, self.first = relative, first
        names = ("square", "absolute") + (("log_square", "relative", "square_relative") if relative else ())
        sums = {name: zeros() for name in names} | {"pixels": zeros(dtype=torch.int64)}
        super().__init__(sums, ignore=ignore)

    def _accumulate(self, map_BHW: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        label_BHW = label_BKHW[:, 0]
        if self.relative:
            valid_BHW = valid_BHW & (label_BHW > 0)
            map_BHW = torch.where(map_BHW <= 0, 1e-9, map_BHW)
        # In other pixels label and prediction are both 1, which adds 0 to every sum.
        y_BHW = torch.where(valid_BHW, label_BHW, 1).double()
        p_BHW = torch.where(valid_BHW, map_BHW, 1).double()
        d_BHW = p_BHW - y_BHW
        self._add(square=d_BHW.square().sum(), absolute=d_BHW.abs().sum(), pixels=valid_BHW.sum())
        if self.relative:
            self._add(
                log_square=(p_BHW.log() - y_BHW.log()).square().sum(),
                relative=(d_BHW.abs() / y_BHW).sum(),
                square_relative=(d_BHW.square() / y_BHW).sum(),
            )

    def compute(self) -> dict[str, float]:
        n = self._sums["pixels"].item()
        mean = {k: ratio(v.item(), n) for k, v in self._sums.items() if k != "pixels"}
        figures = {"rmse": math.sqrt(mean["square"]), "abs_err": mean["absolute"]}
        if self.relative:
            figures |= {
                "log_rmse": math.sqrt(mean["log_square"]),
                "abs_rel": mean["relative"],
                "sq_rel": mean["square_relative"],
            }
        return {self.first: figures.pop(self.first), **figures}
