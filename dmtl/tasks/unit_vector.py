"""Kind `unit_vector`: every pixel has a direction in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.metrics import Angular, angle_deg, normalise
from dmtl.ops.decode_map import SHORTEST
from dmtl.tasks.base import Array, Range, Task, as_array
from dmtl.tasks.palette import GREY, vector_colours


@dataclass(frozen=True, kw_only=True)
class UnitVector(Task):
    """Three logits, normalised; L1 distance to the label summed over x, y, z (published for normals).

    Labels are unit vectors; a pixel where any component is ignored, or whose vector is zero, has no label.
    Component 0 points along the image rows, so a mirrored image negates it.
    """

    kind = "unit_vector"
    label_channels = 3
    primary = "mean"
    higher_is_better = False
    graded = True

    @property
    def channels(self) -> int:
        return 3

    def valid(self, label_BKHW: Tensor) -> Tensor:
        return super().valid(label_BKHW) & (label_BKHW != 0).any(-3, keepdim=True)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return (normalise(logits_BCHW, SHORTEST) - label_BKHW).abs().sum(1, keepdim=True)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "unit"}

    @property
    def decoding(self) -> str:
        return "unit"

    def decode(self, logits_BCHW: Tensor) -> Tensor:
        """Unit vectors, float32 [B,3,H,W] (shorter only where the logits themselves vanish)."""
        self._check_logits("decode", logits_BCHW)
        return normalise(logits_BCHW.float(), SHORTEST)

    def values(self, logits_BCHW: Tensor) -> Tensor:
        return self.decode(logits_BCHW)

    def from_values(self, mean_BDHW: Tensor) -> Tensor:
        return normalise(mean_BDHW, SHORTEST)

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Angular spread of the draws in degrees, 0 .. 90: asin sqrt(1 - R^2) with R the length of the mean
        vector, which is the rms angle to the mean where that is small (Mardia and Jupp, Directional
        Statistics, 2000, section 9.2: R). 1 - R^2 is the variance of unit vectors."""
        return torch.rad2deg(torch.asin(variance_BHW.clamp(0, 1).sqrt()))

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Angle in degrees."""
        return angle_deg(map.float(), label_BKHW.float())

    def new_metric(self, **options: Any) -> Angular:
        """`dmtl.metrics.Angular`: mean, median, rms angle in degrees; percent within 11.25, 22.5, 30."""
        return Angular(ignore=self.ignore, **options)

    def picture(self, map: Array, value_range: Range = None) -> np.ndarray:
        return vector_colours(as_array(map, f"{self.name}.picture", "map", 3))

    def label_picture(self, label_KHW: Array, value_range: Range = None) -> np.ndarray:
        label = as_array(label_KHW, f"{self.name}.label_picture", "label_KHW", 3)
        known = self.valid(torch.from_numpy(np.ascontiguousarray(label)))[0].numpy()
        return np.where(known[..., None], vector_colours(label), GREY)

    def flip(self, label_KHW: Tensor) -> Tensor:
        mirrored_KHW = super().flip(label_KHW)
        x_1HW = torch.where(self.valid(mirrored_KHW), -mirrored_KHW[:1], mirrored_KHW[:1])
        return torch.cat([x_1HW, mirrored_KHW[1:]])
