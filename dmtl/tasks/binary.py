"""The kind `binary`: every pixel has a property or does not have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.errors import DataError
from dmtl.metrics import PixelF
from dmtl.tasks.base import Legend, Range, Words
from dmtl.tasks.classes import Ids
from dmtl.tasks.palette import EMBER, apply_scale, swatches
from dmtl.tasks.stored import Pixels, rounded


@dataclass(frozen=True, kw_only=True)
class Binary(Ids):
    """Base class of binary tasks: a sigmoid logit, a map of probabilities, labels 0 and 1 (above 0.5 is
    1)."""

    thin: bool = False  # type: ignore[misc]  # see Task.thin; for binary tasks it is an option

    kind = "binary"
    channels = 1
    decoding = "sigmoid"
    words = Words(
        "yes or no", "probability", "entropy of the averaged probabilities", "on the other side of one half"
    )
    label_names = ("no", "yes")
    required_label = 1
    primary = "pixelF"
    higher_is_better = True
    scale: ClassVar[np.ndarray] = EMBER  # colours of probabilities 0 .. 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(isinstance(self.thin, bool), "thin", "true or false", self.thin)

    def mean_values(self, label_BKhwN: Tensor, valid_B1hwN: Tensor) -> Tensor:
        """Return the share of positives, float32 [B,1,h,w]."""
        return super().mean_values(label_BKhwN > 0.5, valid_B1hwN)

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Return the entropy of the averaged probability, in nats: 0 .. log 2."""
        return (torch.special.entr(mean_BDHW) + torch.special.entr(1 - mean_BDHW))[:, 0]

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Return 1 where the probability is on the wrong side of one half, else 0."""
        return ((map > 0.5) != (label_BKHW[:, 0] > 0.5)).float()

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        return apply_scale(self.scale, values)

    def legend(self) -> Legend:
        return swatches(("probability 0", "1"), self.picture(np.array([[0.0, 1.0]]))[0])

    def map_from_stored(
        self, stored: np.ndarray, *, numbers: bool, reading: tuple[float, float] | None = None
    ) -> np.ndarray:
        value = super().map_from_stored(stored, numbers=numbers, reading=reading)
        if (value < 0).any() or (value > 1).any():
            raise DataError(
                f"{stored.dtype} values from {stored.min():g} to {stored.max():g}, "
                "expected probabilities as floats from 0 to 1"
            )
        return value

    def assumed_reading(self, most: int | None) -> tuple[float, float] | None:
        """Return the scale 1 / `most`: a code is a probability times the largest possible code."""
        return None if most is None else (1 / most, 0.0)

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """Return 8-bit codes: the probability times 255."""
        return Pixels(rounded(map * 255.0, np.uint8))

    def map_format(self) -> dict[str, Any]:
        text = "8-bit grey; probability = value / 255"
        return {**self.meaning(), "png": text, "scale": 1 / 255, "offset": 0.0}


@dataclass(frozen=True, kw_only=True)
class Mask(Binary):
    """A custom binary task: binary cross-entropy, positives multiplied by `pos_weight` as in PyTorch."""

    pos_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("pos_weight", low=0.0)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return weighted_bce(logits_BCHW, label_BKHW > 0.5, self.pos_weight, 1.0)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "logistic", "positive_weight": self.pos_weight}

    def new_metric(self) -> PixelF:
        """Create a `dmtl.metrics.PixelF`: best F (beta 1) over thresholds, percent."""
        return PixelF(ignore=self.ignore)


def weighted_bce(
    logits: Tensor, positive: Tensor, positive_weight: float | Tensor, negative_weight: float | Tensor
) -> Tensor:
    """Return the weighted binary cross-entropy of each element, computed without overflow.

    It is -(w+ y log p + w- (1 - y) log(1 - p)) with p = sigmoid(logits) and y = `positive`.
    """
    return positive * positive_weight * F.softplus(-logits) + ~positive * negative_weight * F.softplus(logits)
