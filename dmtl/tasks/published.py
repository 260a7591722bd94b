"""The published tasks: kinds with the published names, losses, metrics and weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl import metrics
from dmtl.tasks.binary import Binary, weighted_bce
from dmtl.tasks.classes import Classes
from dmtl.tasks.palette import INK
from dmtl.tasks.scalar import Scalar
from dmtl.tasks.unit_vector import UnitVector

PASCAL = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SemSeg(Classes):
    """Semantic segmentation; by default the 21 classes of PASCAL VOC."""

    name: str = "semseg"
    classes: tuple[str, ...] = PASCAL


PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


@dataclass(frozen=True, kw_only=True)
class HumanParts(Classes):
    """Segmentation of human parts; by default background and the six parts of PASCAL-Part."""

    name: str = "human_parts"
    classes: tuple[str, ...] = PARTS
    weight: float = 2.0

    def crop(self, label_KHW: Tensor) -> Tensor:
        """Ignore all pixels of a crop without a person, as published for whole images."""
        label_KHW = super().crop(label_KHW)
        somebody = ((label_KHW != 0) & self.valid(label_KHW)).any()
        return label_KHW if somebody else torch.full_like(label_KHW, self.ignore)


@dataclass(frozen=True, kw_only=True)
class Sal(Binary):
    """Saliency: whether a pixel is salient.

    Published loss, with n+ and n- valid pixels of each class in the sample, n = n+ + n-:

        L = 1/n sum_i w(y_i) CE_i,     w(1) = n- / n,  w(0) = n+ / n

    The sum is divided by the number of pixels, not by the sum of the weights. A sample with only one class
    has loss 0.
    """

    name: str = "sal"
    weight: float = 5.0

    channels = 2
    decoding = "softmax"
    primary = "maxF"

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        positive_B1HW = label_BKHW > 0.5  # ignored labels arrive as 0
        count_B = valid_B1HW.sum((1, 2, 3), keepdim=True).clamp(min=1)
        share_B = (positive_B1HW.sum((1, 2, 3), keepdim=True) / count_B).to(logits_BCHW.dtype)
        # Two-class softmax cross-entropy is the logistic loss of the difference of the logits.
        margin_B1HW = logits_BCHW[:, 1:] - logits_BCHW[:, :1]
        return weighted_bce(margin_B1HW, positive_B1HW, 1 - share_B, share_B)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "logistic", "balanced": True}

    def new_metric(self) -> metrics.MaxF:
        """Create a `dmtl.metrics.MaxF`: maxF (beta^2 = 0.3) and its published variant maxF_paper, percent."""
        return metrics.MaxF(ignore=self.ignore)


@dataclass(frozen=True, kw_only=True)
class Normals(UnitVector):
    """Surface normals, in the camera frame of the data set."""

    name: str = "normals"
    weight: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Edge(Binary):
    """Edges: whether a pixel is on the boundary of an object.

    Published loss, mean over valid pixels: -(b y log p + (1 - b) (1 - y) log(1 - p)), b = `balance` = 0.95.
    """

    name: str = "edge"
    weight: float = 50.0
    balance: float = 0.95
    thin: bool = True  # type: ignore[misc]  # as in `Binary`

    scale = INK

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("balance", low=0.0, high=1.0)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return weighted_bce(logits_BCHW, label_BKHW > 0.5, self.balance, 1 - self.balance)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "logistic", "positive_weight": self.balance, "negative_weight": 1 - self.balance}

    def new_metric(self) -> metrics.Edge:
        """Create a `dmtl.metrics.Edge`: pixelF (best F of pixels over thresholds, percent) and losses."""
        return metrics.Edge(ignore=self.ignore, balance=self.balance)


_MARK = 255.0  # label value of an unknown distance


@dataclass(frozen=True, kw_only=True)
class Depth(Scalar):
    """Depth: distance of the visible surface from the camera in metres, or its inverse.

    With `distance=False, inverse=True`, values are inverse distances. Labels of 0 or less are ignored. In
    memory, 255 marks an unknown distance, as in the published code. So a distance of exactly 255 in a file is
    read as the next smaller float.
    """

    name: str = "depth"
    ignore: float = _MARK
    distance: bool = True

    def _not_ignored(self, value: np.ndarray) -> np.ndarray:
        if self.ignore != _MARK:
            return value
        return np.where(value == _MARK, np.nextafter(np.float32(_MARK), np.float32(0)), value)
