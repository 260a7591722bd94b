"""Define what every task has in common: options, checks, specification.

Shape letters: B batch, C logit channels, K label channels, H rows, W columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl import ops
from dmtl.errors import ConfigError
from dmtl.metrics import Metric, known_pixels
from dmtl.metrics.base import describe
from dmtl.ops.decode_map import decode_logits
from dmtl.tasks.stored import Stored

Array = Tensor | np.ndarray
Range = tuple[float, float] | None  # (low, high)
Legend = list[tuple[str, tuple[int, int, int]]]  # what a colour means, and its red, green, blue

# Methods that define the loss. The first class (in method resolution order) that defines one of them defines
# the loss. If `dmtl.ops.map_loss` can compute it, that class also defines `_loss_kind`.
_LOSS = {"channels", "valid", "_pixel_loss", "loss", "_loss_kind"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Words:
    """Words for a kind of task in reports and maps.json.

    Attributes:
        kind: what labels are.
        map: what a value of a decoded prediction is.
        uncertainty: what `Task.uncertainty` measures.
        mistake: when a pixel counts as wrong, for comparing errors with uncertainty.
    """

    kind: str = "numbers"
    map: str = "value"
    uncertainty: str = "variance of the noise samples"
    mistake: str = "error above the median of all pixels"


@dataclass(frozen=True, kw_only=True)
class Task(Stored):
    """One kind of map that the network predicts: its channels, loss, decoding, metric, picture and files.

    A task is immutable and holds no tensors, so the same object is used by model, data and training, on any
    device. The fields below and those that subclasses add are its options: `spec()` returns them and
    `task_from_spec` creates an equal task from them.

    Raises:
        ConfigError: an option has a value that cannot work.
        TypeError: from methods, if a tensor has a wrong dtype.
        ValueError: from methods, if a tensor has a wrong shape.
    """

    name: str
    weight: float = 1.0  # w_t, factor of this task's loss
    ignore: float = 255.0  # label value of pixels without a label; non-finite values also mean no label

    channels: ClassVar[int]  # number of logit channels C
    decoding: ClassVar[str | None] = None  # kind of `dmtl.ops.decode_map` that computes `decode`, if any
    unit: ClassVar[str] = ""  # of decoded values: "m" for distances in metres
    words: ClassVar[Words] = Words()
    primary: ClassVar[str]  # the metric of `new_metric()` that enters Delta_MTL
    higher_is_better: ClassVar[bool]
    graded: ClassVar[bool] = False  # `error` is an amount, not just right or wrong
    # Positives are lines of one or two pixels: they are kept when labels shrink, and can be scored as
    # boundaries.
    thin: ClassVar[bool] = False
    unit_length: ClassVar[bool] = False  # labels and predictions are vectors of length 1
    label_names: ClassVar[tuple[str, ...]] = ()  # what labels 0, 1, ... mean; none if labels are numbers
    required_label: ClassVar[int | None] = (
        None  # labels in which this id never occurs are useless for training
    )
    _loss_kind: ClassVar[Callable[[Any], dict[str, Any]]]  # a method, if `dmtl.ops.map_loss` knows the loss

    def __post_init__(self) -> None:
        """Check the options; subclasses extend it."""
        self._require(
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None,
            "name",
            "letters, digits, '_' or '-', beginning with a letter",
            self.name,
        )
        # A task's name becomes the name of a sub-module, which must not hide an attribute of `ModuleDict`.
        free = not hasattr(torch.nn.ModuleDict, self.name)
        self._require(free, "name", "a name that PyTorch modules do not use", self.name)
        self._number("weight", low=0.0)
        self._number("ignore")

    @property
    def value_channels(self) -> int:
        """Return the number D of channels of `values`."""
        return self.label_channels

    @property
    def error_unit(self) -> str:
        """Return the unit of `error`."""
        return self.unit or "label units"

    @property
    def uncertainty_unit(self) -> str:
        """Return the unit of `uncertainty`."""
        return f"{self.unit}²" if self.unit else "label units squared"

    def metric_unit(self, metric: str) -> str:
        """Return the unit of a number that `new_metric()` computes; "" if it is a percentage or has none."""
        return ""

    def loss(self, logits_BCHW: Tensor, label_BKHW: Tensor) -> Tensor:
        """Compute the loss of each sample.

        Args:
            logits_BCHW: floating point. The loss is computed in fp32 (fp64 for fp64 logits), also under
                autocast.
            label_BKHW: any real dtype. Ignored pixels do not count; their logits get a gradient of exactly
                zero.

        Returns:
            [B], the mean over the valid pixels of each sample; exactly 0, with zero gradient, if it has none.
        """
        self._check_logits("loss", logits_BCHW)
        self._check_label("loss", label_BKHW, "label_BKHW", like=logits_BCHW)
        logits_BCHW = logits_BCHW if logits_BCHW.dtype == torch.float64 else logits_BCHW.float()
        valid_B1HW = self.valid(label_BKHW)
        # Masked before any arithmetic: 0 * nan would otherwise leak from ignored pixels into the gradient.
        logits_BCHW = torch.where(valid_B1HW, logits_BCHW, 0.0)
        label_BKHW = torch.where(valid_B1HW, label_BKHW, 0)
        if label_BKHW.is_floating_point():
            label_BKHW = label_BKHW.to(logits_BCHW.dtype)
        loss_B1HW = torch.where(valid_B1HW, self._pixel_loss(logits_BCHW, label_BKHW, valid_B1HW), 0.0)
        count_B = valid_B1HW.sum((1, 2, 3)).clamp(min=1)
        return loss_B1HW.sum((1, 2, 3)) / count_B

    def loss_of_map(self, logits_BChw: Tensor, label_BKHW: Tensor, factor: int = 8) -> Tensor:
        """Compute `loss` of logits at 1/factor resolution, interpolated bilinearly and cropped to the label.

        Args:
            logits_BChw: as in `loss`, with factor h >= H and factor w >= W.
            label_BKHW: as in `loss`.
            factor: label pixels to each logit in both directions, 8 or 4.

        Returns:
            [B]; NaN for a sample with a valid pixel whose logit is not finite. Unless `loss_kind` is None,
            `dmtl.ops.map_loss` computes it without storing logits of the label's size.
        """
        self._check_logits("loss_of_map", logits_BChw)
        if (kind := self.loss_kind) is not None:
            return ops.map_loss(logits_BChw, label_BKHW, factor=factor, **kind)
        frame, (height, width) = [factor * side for side in logits_BChw.shape[2:]], label_BKHW.shape[-2:]
        logits_BCHW = F.interpolate(logits_BChw, frame, mode="bilinear", align_corners=False)
        return self.loss(logits_BCHW[..., :height, :width], label_BKHW)

    @property
    def loss_kind(self) -> dict[str, Any] | None:
        """Return `loss` as keyword arguments of `dmtl.ops.map_loss`.

        None: `map_loss` cannot compute it, for example because a subclass defines its own channels, `valid`,
        `_pixel_loss` or `loss`.
        """
        defines = next(c for c in type(self).__mro__ if _LOSS & vars(c).keys())
        return {"ignore": self.ignore, **self._loss_kind()} if "_loss_kind" in vars(defines) else None

    def decode(self, logits_BCHW: Tensor) -> Tensor:
        """Decode logits to a map, as `dmtl.ops.decode_map` defines it for the kind `decoding`.

        Returns:
            int64 [B,H,W] of class ids; float32 [B,H,W] of probabilities, or of numbers in the label's unit;
            or float32 [B,3,H,W] of unit vectors, which are shorter than 1 only if the logits are nearly 0.
        """
        self._check_logits("decode", logits_BCHW)
        if self.decoding is None:
            raise NotImplementedError(f"{type(self).__name__}.decode")
        return decode_logits(logits_BCHW.float(), self.decoding)

    def values(self, logits_BCHW: Tensor) -> Tensor:
        """Return the values to average over noise samples, float32 [B,D,H,W].

        These are the decoded map or, for classes, the probabilities.
        """
        map = self.decode(logits_BCHW)
        return map if map.ndim == 4 else map[:, None]

    def mean_values(self, label_BKhwN: Tensor, valid_B1hwN: Tensor) -> Tensor:
        """Average labels over their last axis N, in the same form as `values` of predictions.

        Args:
            label_BKhwN: any real dtype, 0 where not valid.
            valid_B1hwN: floating point, 1 for pixels with a label, else 0.

        Returns:
            float32 [B,D,h,w], the mean over valid pixels; 0 if there are none.
        """
        return label_BKhwN.float().sum(-1) / valid_B1hwN.sum(-1).clamp(min=1)

    def from_values(self, mean_BDHW: Tensor) -> Tensor:
        """Return the map of values averaged over noise samples, in the same form as `decode`."""
        return mean_BDHW[:, 0]

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Return the uncertainty of each pixel, float32 [B,H,W], 0 or more; its measure depends on the kind.

        Args:
            mean_BDHW: mean of `values` over noise samples.
            variance_BHW: their variance, summed over D.
        """
        return variance_BHW

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Return the error of each pixel of a decoded map, float32 [B,H,W]: an amount if `graded`, else 0 or
        1. It has no meaning in ignored pixels."""
        raise NotImplementedError(f"{type(self).__name__}.error")

    def meaning(self) -> dict[str, Any]:
        return super().meaning() | ({"unit": self.unit} if self.unit else {})

    def described(self, entry: Mapping[str, Any]) -> Task:
        """Return this task with the options in an entry of maps.json; other options stay unchanged.

        Raises:
            ConfigError: the entry describes predictions of another kind or unit.
        """
        for key, value in self.meaning().items():
            if key in entry and entry[key] != value:
                raise ConfigError(f"{key} is {entry[key]!r:.80}, expected {value!r} as in the data set")
        return self

    def to_terms_of(self, other: Task) -> Callable[[Tensor], Tensor]:
        """Return a function that converts predictions of this task to those of `other`, a task of the same
        name.

        Options that do not change the meaning of a decoded value (`ignore`, `log`, `score`, ...) may differ.

        Raises:
            ConfigError: predictions of the two tasks mean different things.
        """
        mine, theirs = self.meaning(), other.meaning()
        for key in {**mine, **theirs}:
            if mine.get(key) != theirs.get(key):
                raise ConfigError(f"{key} is {mine.get(key, '')!r} there and {theirs.get(key, '')!r} here")
        return lambda map: map

    def map_difference(self, expected: Tensor, got: Tensor, logits: Callable[[], Tensor]) -> float:
        """Return a measure of the difference between two decoded predictions of equal shape.

        Differences that come from nearly equal logits count little.

        Args:
            expected: a map as `decode` returns it.
            got: the map to compare with it.
            logits: function that computes the logits [B,C,H,W] of `expected`, for kinds that need them.

        Returns:
            `relative_difference`, unless the kind defines another measure.
        """
        return relative_difference(expected, got)

    def valid(self, label_BKHW: Tensor) -> Tensor:
        """Return which pixels have a label, bool [..., 1, H, W]."""
        return known_pixels(label_BKHW, self.ignore)

    def new_metric(self) -> Metric:
        """Create a metric whose `update` takes decoded maps and labels [B,K,H,W]."""
        raise NotImplementedError(f"{type(self).__name__}.new_metric")

    def picture(self, map: Array, value_range: Range = None) -> np.ndarray:
        """Draw one decoded map as a picture, uint8 [H,W,3].

        Args:
            map: [H,W], or [3,H,W] for vectors: the result of `decode` for one image.
            value_range: ends of the colour scale, if the kind has one; pass the same to compare pictures.
        """
        dims = 2 if self.label_channels == 1 else 3
        return self._paint(as_array(map, f"{self.name}.picture", "map", dims), value_range)

    def label_picture(self, label_KHW: Array, value_range: Range = None) -> np.ndarray:
        """Draw one label in the colours of `picture`, uint8 [H,W,3]; ignored pixels are mid-grey."""
        return self._paint(self._known(label_KHW, "label_picture"), value_range)

    def legend(self) -> Legend:
        """Return the meaning of the colours of `picture`; empty if a few words cannot explain them."""
        return []

    def picture_legend(self, map: Array) -> Legend:
        """Return the meaning of the colours in the `picture` of this map."""
        return self.legend()

    def value_range(self, label_KHW: Array) -> Range:
        """Return the ends of a colour scale that suits this label; None if the colours are fixed."""
        return None

    def flip(self, label_KHW: Tensor) -> Tensor:
        """Return the label of the mirrored image (left to right)."""
        self._check_label("flip", label_KHW, "label_KHW", dims=3)
        return label_KHW.flip(-1)

    def zoom(self, label_KHW: Tensor, factor: float) -> Tensor:
        """Adapt label values, not their positions, to an image magnified by `factor`.

        Most kinds return the label unchanged; distances are divided by `factor`.
        """
        self._check_label("zoom", label_KHW, "label_KHW", dims=3)
        if not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0):
            raise ValueError(f"{self.name}.zoom: factor must be a positive number, got {factor!r}")
        return label_KHW

    def crop(self, label_KHW: Tensor) -> Tensor:
        """Adapt a label after cropping. Most tasks return it unchanged."""
        self._check_label("crop", label_KHW, "label_KHW", dims=3)
        return label_KHW

    def spec(self) -> dict[str, Any]:
        """Return a description in JSON values, from which `task_from_spec` creates an equal task."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        return {"name": options.pop("name"), "kind": self.kind, **options}

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        """Return the loss of each pixel [B,1,H,W]; its mean over valid pixels is the loss of the sample.

        `loss` calls it with logits in fp32 or fp64. Logits and labels are already 0 in ignored pixels.
        """
        raise NotImplementedError(f"{type(self).__name__}._pixel_loss")

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        """Draw values [H,W], or [K,H,W] of several channels, as uint8 [H,W,3]; NaN becomes mid-grey."""
        raise NotImplementedError(f"{type(self).__name__}._paint")

    def _known(self, label_KHW: Array, function: str) -> np.ndarray:
        """Return the values of a label for `_paint`, float32, NaN in ignored pixels."""
        label = as_array(label_KHW, f"{self.name}.{function}", "label_KHW", 3)
        known = self.valid(torch.from_numpy(np.ascontiguousarray(label))).numpy()
        values = np.where(known, label.astype(np.float32), np.float32("nan"))
        return values[0] if self.label_channels == 1 else values

    # Checks. They only look at types and shapes, never at values, so that nothing waits for the device.

    def _check_logits(self, function: str, logits_BCHW: Tensor) -> None:
        contract = f"a floating-point tensor [B, {self.channels}, H, W]"
        message = f"{self.name}.{function}: logits_BCHW must be {contract}, got {describe(logits_BCHW)}"
        if not isinstance(logits_BCHW, Tensor) or not logits_BCHW.is_floating_point():
            raise TypeError(message)
        if logits_BCHW.ndim != 4 or logits_BCHW.shape[1] != self.channels:
            raise ValueError(message)

    def _check_label(
        self, function: str, label: Tensor, argument: str, dims: int = 4, like: Tensor | None = None
    ) -> None:
        shape = ["B", str(self.label_channels), "H", "W"][4 - dims :]
        if like is not None:
            shape = [str(like.shape[0]), str(self.label_channels), str(like.shape[2]), str(like.shape[3])]
        contract = f"a real tensor [{', '.join(shape)}]"
        message = f"{self.name}.{function}: {argument} must be {contract}, got {describe(label)}"
        if not isinstance(label, Tensor) or label.is_complex():
            raise TypeError(message)
        agrees = label.ndim == dims and label.shape[-3] == self.label_channels
        if agrees and like is not None:
            agrees = label.shape[0] == like.shape[0] and label.shape[2:] == like.shape[2:]
        if not agrees:
            raise ValueError(message)

    def _require(self, condition: bool, option: str, contract: str, value: Any) -> None:
        if not condition:
            raise ConfigError(f"task {self.name!r}: {option} must be {contract}, got {value!r:.80}")

    def _number(self, option: str, low: float = -math.inf, high: float = math.inf) -> None:
        value = getattr(self, option)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        bounds = "" if math.isinf(low) else f" from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
        self._require(number and low <= value <= high, option, f"a finite number{bounds}", value)


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """Return the largest |got - expected| / max(1, |expected|); NaN if `got` is not finite."""
    return ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()


def as_array(x: Array, function: str, argument: str, dims: int) -> np.ndarray:
    """Return a map or label on any device as a NumPy array, after checking its number of dimensions."""
    array = x.detach().cpu() if isinstance(x, Tensor) else x
    if isinstance(array, Tensor):
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{function}: {argument} must be a tensor or an array, got {type(x).__name__}")
    if array.ndim != dims:
        raise ValueError(f"{function}: {argument} must have {dims} dimensions, got {describe(x)}")
    return array
