"""Kind `classes`: every pixel belongs to one of n classes. And what it shares with the kind `binary`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.errors import DataError
from dmtl.metrics import MeanIoU
from dmtl.tasks.base import Legend, Range, Task, Words
from dmtl.tasks.palette import GREY, class_palette, swatches
from dmtl.tasks.stored import Pixels, listed


@dataclass(frozen=True, kw_only=True)
class Ids(Task):
    """Labels are 8-bit ids of `label_names`, predictions are (averaged in) probabilities."""

    label_dtype = torch.uint8
    error_unit = ""
    uncertainty_unit = "nats"

    def label_from_stored(self, stored: np.ndarray, *, numbers: bool, **_: float | None) -> Tensor:
        stored_1HW = self._channels_first(stored)
        if stored.dtype.kind not in "bui" or (not numbers and stored.dtype != np.uint8):
            raise DataError(
                f"{stored.dtype} values, expected 8-bit class ids or 0 and 1 (grey or palette PNG)"
            )
        wrong = (stored_1HW >= len(self.label_names)) & (stored_1HW != self.ignore)
        if stored.dtype.kind == "i":
            wrong |= stored_1HW < 0
        if wrong.any():
            raise DataError(
                f"value {listed(stored_1HW[wrong])} in {int(wrong.sum())} pixels, expected {self._allowed()}"
            )
        return torch.from_numpy(stored_1HW.astype(np.uint8))

    def label_to_stored(self, label_KHW: Tensor) -> np.ndarray:
        return label_KHW[0].numpy()

    def label_problem(self, label_KHW: Tensor) -> str | None:
        value = np.flatnonzero(np.bincount(label_KHW.numpy().ravel()))  # quicker than comparing every pixel
        wrong = value[(value >= len(self.label_names)) & (value != self.ignore)]
        return f"value {wrong.max()}, expected {self._allowed()}" if len(wrong) else None

    def _allowed(self) -> str:
        return f"0 to {len(self.label_names) - 1}, or {self.ignore:g} (ignore)"


@dataclass(frozen=True, kw_only=True)
class Classes(Ids):
    """Softmax over n classes, cross-entropy; labels are class ids 0 .. n-1.

    Ids outside that range count as ignored here (a device cannot raise in mid-step); data sets reject them.
    """

    classes: tuple[str, ...] = ()  # names; an integer n means n classes without names

    kind = "classes"
    decoding = "argmax"
    map_dtype = torch.int64
    words = Words(
        "classes", "class id", "entropy of the averaged probabilities", "another class than labelled"
    )
    primary = "mIoU"
    higher_is_better = True

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.classes
        if isinstance(names, int) and not isinstance(names, bool):
            self._require(names >= 2, "classes", "at least 2", names)
            self._require(names <= 1 << 16, "classes", "at most 65536", names)
            names = [f"class {i}" for i in range(names)]
        listed = isinstance(names, (list, tuple)) and all(isinstance(n, str) and n for n in names)
        self._require(listed and len(names) >= 2, "classes", "a list of at least two names", self.classes)
        self._require(len(set(names)) == len(names), "classes", "a list of different names", self.classes)
        last = len(names) - 1
        self._require(not 0 <= self.ignore <= last, "ignore", f"outside the class ids 0..{last}", self.ignore)
        object.__setattr__(self, "classes", tuple(names))

    @property
    def label_names(self) -> tuple[str, ...]:  # type: ignore[override]  # follows from an option
        return self.classes

    @property
    def channels(self) -> int:  # type: ignore[override]  # follows from an option
        return len(self.classes)

    @property
    def value_channels(self) -> int:
        return self.channels

    def valid(self, label_BKHW: Tensor) -> Tensor:
        in_range = (label_BKHW >= 0) & (label_BKHW < self.channels)
        return super().valid(label_BKHW) & in_range.all(-3, keepdim=True)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return F.cross_entropy(logits_BCHW, label_BKHW[:, 0].long(), reduction="none")[:, None]

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "cross_entropy"}

    def values(self, logits_BCHW: Tensor) -> Tensor:
        self._check_logits("values", logits_BCHW)
        return logits_BCHW.float().softmax(1)

    def mean_values(self, label_BKhwN: Tensor, valid_B1hwN: Tensor) -> Tensor:
        """Shares of the classes."""
        b, _, h, w, _ = label_BKhwN.shape
        shares_BhwD = valid_B1hwN.new_zeros(b, h, w, self.channels)
        shares_BhwD.scatter_add_(3, label_BKhwN[:, 0].long(), valid_B1hwN[:, 0])
        return shares_BhwD.movedim(3, 1) / valid_B1hwN.sum(-1).clamp(min=1)

    def from_values(self, mean_BDHW: Tensor) -> Tensor:
        return mean_BDHW.argmax(1)

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Entropy of the averaged probabilities, in nats: 0 .. log n."""
        return torch.special.entr(mean_BDHW).sum(1)

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """1 where the class is another."""
        return (map != label_BKHW[:, 0]).float()

    def map_difference(self, expected: Tensor, got: Tensor, logits: Callable[[], Tensor]) -> float:
        """How far apart the logits of two different ids are; infinite for an id that no class has."""
        if torch.equal(expected, got):
            return 0.0
        if not ((got >= 0) & (got < self.channels)).all():
            return math.inf
        logits_BCHW = logits()
        gap = logits_BCHW.gather(1, expected[:, None]) - logits_BCHW.gather(1, got[:, None])
        return gap.abs().max().item()

    def new_metric(self, **options: Any) -> MeanIoU:
        """`dmtl.metrics.MeanIoU`: mIoU, pixel accuracy and the IoU of each class, percent."""
        return MeanIoU(self.classes, ignore=self.ignore, **options)

    def legend(self) -> Legend:
        return swatches(self.classes, class_palette(self.classes))

    def map_from_stored(self, stored: np.ndarray, **_: Any) -> np.ndarray:
        last = self.channels - 1
        if stored.dtype.kind not in "bui":
            raise DataError(f"{stored.dtype} values, expected whole class ids from 0 to {last}")
        wrong = stored[(stored < 0) | (stored > last)]
        if wrong.size:
            raise DataError(f"value {listed(wrong)}, expected class ids from 0 to {last}")
        return stored.astype(np.int64)

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """8-bit class ids with a palette that makes them a picture; 16-bit ones above 256 classes."""
        if self.channels > 256:
            return Pixels(map.astype(np.uint16))
        return Pixels(map.astype(np.uint8), class_palette(self.classes))

    def map_format(self) -> dict[str, Any]:
        bits = "8-bit palette" if self.channels <= 256 else "16-bit grey"
        return {"kind": self.kind, "png": f"{bits}; pixel value = class id", "classes": list(self.classes)}

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        known = (values >= 0) & (values < self.channels)  # False for NaN
        colours = np.vstack([class_palette(self.classes), GREY])
        return colours[np.where(known, values, self.channels).astype(np.int64)]
