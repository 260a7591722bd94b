"""Kind `classes`: every pixel belongs to one of n classes."""

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
from dmtl.tasks.base import Array, Legend, Range, Words, as_array
from dmtl.tasks.ids import Ids
from dmtl.tasks.palette import GREY, class_palette, swatches
from dmtl.tasks.stored import Pixels, listed


@dataclass(frozen=True, kw_only=True)
class Classes(Ids):
    """Softmax over n classes, cross-entropy; labels are class ids 0 .. n-1.

    Ids outside that range count as ignored here (a device cannot raise in mid-step); data sets reject them.
    """

    classes: tuple[str, ...] = ()  # names; an integer n means n classes without names

    kind = "classes"
    map_dtype = torch.int64
    words = Words(
        "classes", "class id", "entropy of the averaged probabilities", "another class than labelled"
    )
    primary = "mIoU"
    higher_is_better = True

    def __post_init__(self):
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
    def label_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def channels(self) -> int:
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

    @property
    def decoding(self) -> str:
        return "argmax"

    def decode(self, logits_BCHW: Tensor) -> Tensor:
        """Class ids, int64 [B,H,W]."""
        self._check_logits("decode", logits_BCHW)
        return logits_BCHW.argmax(1)

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

    def picture(self, map: Array, value_range: Range = None) -> np.ndarray:
        ids = as_array(map, f"{self.name}.picture", "map", 2)
        return self._paint(ids)

    def label_picture(self, label_KHW: Array, value_range: Range = None) -> np.ndarray:
        ids = as_array(label_KHW, f"{self.name}.label_picture", "label_KHW", 3)[0]
        return self._paint(ids)

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

    def _paint(self, ids: np.ndarray) -> np.ndarray:
        known = np.isfinite(ids) & (ids >= 0) & (ids < self.channels)
        colours = np.vstack([class_palette(self.classes), GREY])
        return colours[np.where(known, ids, self.channels).astype(np.int64)]
