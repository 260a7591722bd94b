"""The kind `scalar`: every pixel has a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl import metrics
from dmtl.tasks.base import Array, Legend, Range, Task, as_array
from dmtl.tasks.palette import SPECTRUM, apply_scale, swatches
from dmtl.tasks.stored import Pixels, rounded
from dmtl.text import number

_SCORES = ("rmse", "abs_err")
# Metres. 16 bits of millimetres cannot hold larger distances, and are too coarse if all are below 1 m.
_FAR, _NEAR = 65.5354, 1.0
NO_NUMBER = float(np.finfo(np.float32).min)


@dataclass(frozen=True, kw_only=True)
class Scalar(Task):
    """One logit that is the value itself, or its logarithm; the loss is a masked L1.

    With `log`, `distance` or `inverse`, labels of 0 or less are ignored. The default of `ignore` is the
    lowest float32, so that no number is ignored by accident; files mark unknown pixels by NaN.

    Attributes:
        log: the logit is the natural logarithm of the value, and the loss compares logarithms.
        distance: values are distances from the camera in metres: magnifying an image divides them.
        inverse: values are inverse distances (disparities) in any unit: magnifying multiplies them.
        score: the metric that enters Delta_MTL: "rmse" or "abs_err".
        low: low end of the colour scale; default: the 1st percentile of each picture.
        high: high end of the colour scale; default: the 99th percentile.
    """

    ignore: float = NO_NUMBER
    log: bool = False
    distance: bool = False
    inverse: bool = False
    score: str = "rmse"
    low: float | None = None
    high: float | None = None

    kind = "scalar"
    channels = 1
    higher_is_better = False
    graded = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("log", "distance", "inverse"):
            value = getattr(self, option)
            self._require(isinstance(value, bool), option, "true or false", value)
        both = self.distance and self.inverse
        self._require(not both, "distance", "false where inverse is true", self.distance)
        self._require(self.score in _SCORES, "score", " or ".join(map(repr, _SCORES)), self.score)
        for option in ("low", "high"):
            if getattr(self, option) is not None:
                self._number(option)
        if self.low is not None and self.high is not None:
            self._require(self.low < self.high, "high", f"above low ({self.low:g})", self.high)

    @property
    def unit(self) -> str:  # type: ignore[override]  # follows from an option
        return "m" if self.distance else ""

    def metric_unit(self, metric: str) -> str:
        return self.unit if metric in _SCORES else ""

    @property
    def primary(self) -> str:  # type: ignore[override]  # follows from an option
        return self.score

    @property
    def positive(self) -> bool:
        """Return whether only values above 0 are valid."""
        return self.log or self.distance or self.inverse

    def valid(self, label_BKHW: Tensor) -> Tensor:
        known = super().valid(label_BKHW)
        return known & (label_BKHW > 0).all(-3, keepdim=True) if self.positive else known

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        if self.log:
            label_BKHW = torch.where(valid_B1HW, label_BKHW, 1).to(logits_BCHW.dtype).log()
        return (logits_BCHW - label_BKHW).abs()

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "absolute", "log": self.log, "positive": self.positive}

    @property
    def decoding(self) -> str:  # type: ignore[override]  # follows from an option
        return "exp" if self.log else "value"

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Return the absolute difference, float32 [B,H,W], in the label's unit."""
        return (map - label_BKHW[:, 0]).abs().float()

    def new_metric(self) -> metrics.Depth:
        """Create a `dmtl.metrics.Depth` with `score` first; it has relative errors if values are positive."""
        return metrics.Depth(ignore=self.ignore, relative=self.positive, first=self.score)

    def legend(self) -> Legend:
        names = ("near", "far") if self.distance else ("far", "near") if self.inverse else ("low", "high")
        return swatches(names, self.picture(np.array([[0.0, 1.0]]), (0.0, 1.0))[0])

    def picture_legend(self, map: Array) -> Legend:
        """Return the ends of the colour scale with their values."""
        ends = self._range(as_array(map, f"{self.name}.picture_legend", "map", 2))
        legend = zip(self.legend(), ends, strict=True)
        return [(f"{name} {number(end, 3)} {self.unit}".rstrip(), colour) for (name, colour), end in legend]

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """Return 16-bit pixels: distances as millimetres if these can hold all of them, else the full
        range."""
        low, high = (0.0, 0.0) if not self.distance else (float(map.min()), float(map.max()))
        if low >= 0 and _NEAR <= high <= _FAR:
            return Pixels(rounded(map * 1000.0, np.uint16))
        return super().map_to_pixels(map)

    def map_format(self) -> dict[str, Any]:
        if not self.distance:
            return super().map_format()
        text = (
            # `dmtl predict` compares this text when it resumes, so it must not change.
            "16-bit grey, millimetres; metres = value / 1000. An image whose distances these do not hold "
            "(below 0, above 65.535 m, or none of 1 m or more) has another scale and offset in its `reading`"
        )
        return {**self.meaning(), "png": text, "scale": 0.001, "offset": 0.0}

    def meaning(self) -> dict[str, Any]:
        return super().meaning() | {"unit": self.unit, "inverse": self.inverse}

    def value_range(self, label_KHW: Array) -> tuple[float, float]:
        return self._range(self._known(label_KHW, "value_range"))

    def zoom(self, label_KHW: Tensor, factor: float) -> Tensor:
        label_KHW = super().zoom(label_KHW, factor)
        if not (self.distance or self.inverse):
            return label_KHW
        nearer_KHW = label_KHW / factor if self.distance else label_KHW * factor
        return torch.where(self.valid(label_KHW), nearer_KHW, label_KHW)

    def _range(self, values: np.ndarray) -> tuple[float, float]:
        known = values[np.isfinite(values)]
        low, high = map(float, np.percentile(known, [1, 99])) if len(known) else (0.0, 1.0)
        low = low if self.low is None else self.low
        high = high if self.high is None else self.high
        return low, max(high, low + 1e-6)

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        values = values.astype(np.float32)
        low, high = value_range or self._range(values)
        share = (np.where(np.isfinite(values), values, np.nan) - low) / (high - low)
        # Distances run from warm (near) to cold (far), other numbers from cold (low) to warm (high). So near
        # pixels are warm in pictures of inverse distances, too.
        return apply_scale(SPECTRUM, 1 - share if self.distance else share)
