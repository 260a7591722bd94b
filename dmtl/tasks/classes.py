"""The kind `classes`: every pixel belongs to one of n classes; and its base class, shared with `binary`."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.errors import ConfigError, DataError
from dmtl.metrics import MeanIoU
from dmtl.tasks.base import Array, Legend, Range, Task, Words, as_array
from dmtl.tasks.palette import GREY, class_palette, swatches
from dmtl.tasks.recode import class_table, colour_codes, read_colour, read_value, recode, stored_name
from dmtl.tasks.stored import Pixels, listed
from dmtl.text import shortened


@dataclass(frozen=True, kw_only=True)
class Ids(Task):
    """Base class of tasks whose labels are 8-bit ids of `label_names`; probabilities are averaged."""

    label_dtype = torch.uint8
    reading_options = ("values", "colors")
    error_unit = ""
    uncertainty_unit = "nats"

    def reading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options `values` and `colors` as tables: stored value or colour -> id."""
        super().reading(options)
        readers = {"values": read_value, "colors": read_colour}
        if len(options) > 1:
            raise ConfigError(f"task {self.name!r}: set either values or colors, not both")
        names, ignore = self.label_names, int(self.ignore)
        try:
            tables = {k: class_table(k, v, names, ignore, readers[k]) for k, v in options.items()}
        except ConfigError as error:
            raise ConfigError(f"task {self.name!r}: {error}") from None
        for table in (table for key, table in tables.items() if key == "values"):
            table.setdefault(ignore, ignore)
        return tables

    def label_from_stored(
        self,
        stored: np.ndarray,
        *,
        numbers: bool,
        values: Mapping[int, int] | None = None,
        colors: Mapping[int, int] | None = None,
        **_: float | None,
    ) -> Tensor:
        """Convert stored values to ids; `values` and `colors` are the tables of `reading`."""
        if colors is not None:
            if stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[2] != 3:
                raise DataError(
                    f"{stored.dtype} values of shape {list(stored.shape)}, expected 8-bit colours [H, W, 3] "
                    "because dataset.yaml sets `colors`"
                )
            return self._recoded(colour_codes(stored)[None], "colors", colors)
        if stored.ndim == 3 and stored.shape[2] == 3:
            raise DataError(
                f"{stored.dtype} values of shape {list(stored.shape)}, expected one value per pixel, grey or "
                "palette, or `colors:` in dataset.yaml that says which colour is which class"
            )
        stored_1HW = self._channels_first(stored)
        if values is not None and stored.dtype.kind in "bui":
            return self._recoded(stored_1HW, "values", values)
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
                ", or `values:` in dataset.yaml that says which stored value is which class"
            )
        return torch.from_numpy(stored_1HW.astype(np.uint8))

    def _recoded(self, codes_1HW: np.ndarray, option: str, table: Mapping[int, int]) -> Tensor:
        codes_1HW = codes_1HW.astype(np.uint8) if codes_1HW.dtype == bool else codes_1HW
        ids_1HW, known_1HW = recode(codes_1HW, table)
        if not known_1HW.all():
            wrong = np.unique(codes_1HW[~known_1HW]).tolist()
            named, allowed = (
                shortened(stored_name(option, code) for code in codes) for codes in (wrong, table)
            )
            raise DataError(
                f"{'colour' if option == 'colors' else 'value'} {named} in {int((~known_1HW).sum())} pixels, "
                f"expected {allowed} as `{option}` in dataset.yaml says"
            )
        return torch.from_numpy(ids_1HW)

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

    Other ids count as ignored here, because a GPU cannot raise an error in the middle of a step; data sets
    reject them when they read labels.
    """

    classes: tuple[str, ...] = ()  # names of the classes; an integer n means n classes without names

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
            names = _numbered(names)
        listed = isinstance(names, (list, tuple)) and all(isinstance(n, str) and n for n in names)
        contract = "a list of at least two names (quote what YAML reads otherwise: 'no', 'off', '1', 'null')"
        self._require(listed and len(names) >= 2, "classes", contract, self.classes)
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
        """Return the shares of the classes, float32 [B,n,h,w]."""
        b, _, h, w, _ = label_BKhwN.shape
        shares_BhwD = valid_B1hwN.new_zeros(b, h, w, self.channels)
        shares_BhwD.scatter_add_(3, label_BKhwN[:, 0].long(), valid_B1hwN[:, 0])
        return shares_BhwD.movedim(3, 1) / valid_B1hwN.sum(-1).clamp(min=1)

    def from_values(self, mean_BDHW: Tensor) -> Tensor:
        return mean_BDHW.argmax(1)

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Return the entropy of the averaged probabilities, in nats: 0 .. log n."""
        return torch.special.entr(mean_BDHW).sum(1)

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Return 1 where the class is wrong, else 0."""
        return (map != label_BKHW[:, 0]).float()

    def map_difference(self, expected: Tensor, got: Tensor, logits: Callable[[], Tensor]) -> float:
        """Return the largest gap between the logits of two differing ids; infinite if an id is not a
        class."""
        if torch.equal(expected, got):
            return 0.0
        if not ((got >= 0) & (got < self.channels)).all():
            return math.inf
        logits_BCHW = logits()
        gap = logits_BCHW.gather(1, expected[:, None]) - logits_BCHW.gather(1, got[:, None])
        return gap.abs().max().item()

    def meaning(self) -> dict[str, Any]:
        return super().meaning() | {"classes": list(self.classes)}

    def described(self, entry: Mapping[str, Any]) -> Task:
        """Return this task with the class names of the entry, in its order."""
        names = entry.get("classes", list(self.classes))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"classes is {names!r:.80}, expected a list of names")
        super().described({key: value for key, value in entry.items() if key != "classes"})
        return replace(self, classes=tuple(names))

    def to_terms_of(self, other: Task) -> Callable[[Tensor], Tensor]:
        """Return a function that converts class ids to those of `other`, matching classes by name.

        If one of the tasks has no names, only the number of classes must agree.
        """
        if not isinstance(other, Classes):
            return super().to_terms_of(other)
        nameless = any(list(task.classes) == _numbered(task.channels) for task in (self, other))
        if nameless and self.channels == other.channels:
            return lambda map: map
        mine, theirs = (
            [unicodedata.normalize("NFC", name) for name in task.classes] for task in (self, other)
        )
        if sorted(mine) != sorted(theirs):
            raise ConfigError(
                f"its classes are {', '.join(self.classes)} there and {', '.join(other.classes)} here, "
                "expected the same names in any order, because classes are matched by name"
            )
        if mine == theirs:
            return lambda map: map
        ids = torch.tensor([theirs.index(name) for name in mine])
        return lambda map: ids.to(map.device)[map]

    def new_metric(self) -> MeanIoU:
        """Create a `dmtl.metrics.MeanIoU`: mIoU, pixel accuracy and the IoU of each class, percent."""
        return MeanIoU(self.classes, ignore=self.ignore)

    def legend(self) -> Legend:
        return swatches(self.classes, class_palette(self.classes))

    def picture_legend(self, map: Array) -> Legend:
        """Return the classes that occur, the most frequent first."""
        ids = as_array(map, f"{self.name}.picture_legend", "map", 2)
        counts = np.bincount(ids.ravel(), minlength=self.channels)
        legend = self.legend()
        return [legend[id] for id in np.argsort(-counts, kind="stable") if counts[id]]

    def map_from_stored(self, stored: np.ndarray, **_: Any) -> np.ndarray:
        last = self.channels - 1
        if stored.dtype.kind not in "bui":
            raise DataError(f"{stored.dtype} values, expected whole class ids from 0 to {last}")
        wrong = stored[(stored < 0) | (stored > last)]
        if wrong.size:
            raise DataError(f"value {listed(wrong)}, expected class ids from 0 to {last}")
        return stored.astype(np.int64)

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """Return 8-bit class ids with a palette for display, or 16-bit ids for more than 256 classes."""
        if self.channels > 256:
            return Pixels(map.astype(np.uint16))
        return Pixels(map.astype(np.uint8), class_palette(self.classes))

    def map_format(self) -> dict[str, Any]:
        bits = "8-bit palette" if self.channels <= 256 else "16-bit grey"
        return {**self.meaning(), "png": f"{bits}; pixel value = class id"}

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        known = (values >= 0) & (values < self.channels)  # False for NaN
        colours = np.vstack([class_palette(self.classes), GREY])
        return colours[np.where(known, values, self.channels).astype(np.int64)]


def _numbered(count: int) -> list[str]:
    """Return names for classes without names."""
    return [f"class {id}" for id in range(count)]
