"""The base class of all metrics: sums over pixels, which can be added over batches and processes.

Shape letters: B batch, K label channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


class Metric:
    """Metrics of predictions (decoded maps) against labels, over a whole data set.

        metric = Metric(...)
        for map, label in ...: metric.update(map, label)     # does not wait for the device
        metric.merge(other_process_state)                    # any split of the data gives the same result
        metric.compute()                                     # {"mIoU": 41.3, ...}

    The state is a dict of int64 and float64 sums. Counts merge exactly, other sums up to float64 rounding.
    Subclasses declare their sums and add to them in `_accumulate`.
    """

    map_channels: ClassVar[int] = 1  # 1: maps are [B,H,W]; 3: maps are [B,3,H,W]
    integer_map: ClassVar[bool] = False
    notes: Mapping[str, str] = {}  # metric -> a short explanation, if the name is not enough

    def __init__(
        self,
        sums: Mapping[str, Tensor],
        *,
        ignore: float = 255.0,
        constants: Mapping[str, Tensor] | None = None,
    ):
        self.ignore = float(ignore)
        self._sums = dict(sums)
        self._constants = dict(constants or {})

    @torch.no_grad()
    def update(self, map: Tensor, label_BKHW: Tensor) -> None:
        """Add a batch.

        Args:
            map: decoded predictions: class ids [B,H,W] of an integer dtype, or floating-point [B,H,W] or
                [B,3,H,W].
            label_BKHW: any real dtype, on the device of `map`; ignored and non-finite pixels are skipped.

        Raises:
            TypeError: a wrong dtype.
            ValueError: a wrong shape or device.
        """
        self._check(map, label_BKHW)
        if next(iter(self._sums.values())).device != map.device:
            self.to(map.device)
        self._accumulate(map if self.integer_map else map.float(), label_BKHW, self._valid(label_BKHW))

    def compute(self) -> dict[str, float]:
        """Return the metrics so far; NaN if no pixel was valid."""
        raise NotImplementedError(f"{type(self).__name__}.compute")

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the sums. Adding states of equal metrics merges them."""
        return {k: v.clone() for k, v in self._sums.items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums in the state of another metric of the same kind.

        Raises:
            ValueError: the names or shapes in `state` differ from those of this metric.
        """
        here, there = ({k: list(v.shape) for k, v in s.items()} for s in (self._sums, state))
        if here != there:
            raise ValueError(f"{type(self).__name__}.merge: state must be {here}, got {there}")
        for name, value in state.items():
            self._sums[name] = self._sums[name] + value.to(self._sums[name])

    def to(self, device: torch.device | str) -> Metric:
        """Move the sums to a device and return the metric.

        `update` also moves them to the device of its maps.
        """
        self._sums = {k: v.to(device) for k, v in self._sums.items()}
        self._constants = {k: v.to(device) for k, v in self._constants.items()}
        return self

    def _valid(self, label_BKHW: Tensor) -> Tensor:
        return known_pixels(label_BKHW, self.ignore)[:, 0]

    def _accumulate(self, map: Tensor, label_BKHW: Tensor, valid_BHW: Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__}._accumulate")

    def _add(self, **sums: Tensor) -> None:
        for name, value in sums.items():
            self._sums[name] += value

    def _check(self, map: Tensor, label_BKHW: Tensor) -> None:
        function = f"{type(self).__name__}.update"
        shape = "[B, H, W]" if self.map_channels == 1 else f"[B, {self.map_channels}, H, W]"
        number = "an integer" if self.integer_map else "a floating-point"
        contract = f"{function}: map must be {number} tensor {shape} of decoded maps, got "
        real = isinstance(map, Tensor) and not map.is_complex() and map.dtype != torch.bool
        if not real or map.is_floating_point() == self.integer_map:
            raise TypeError(contract + describe(map))
        vector = map.ndim == 4 and map.shape[1] == self.map_channels
        if not (map.ndim == 3 if self.map_channels == 1 else vector):
            raise ValueError(contract + describe(map))
        expected = [map.shape[0], self.map_channels, *map.shape[-2:]]
        contract = f"{function}: label_BKHW must be a real tensor {expected} on {map.device}, got "
        if not isinstance(label_BKHW, Tensor) or label_BKHW.is_complex():
            raise TypeError(contract + describe(label_BKHW))
        if list(label_BKHW.shape) != expected or label_BKHW.device != map.device:
            raise ValueError(contract + f"{describe(label_BKHW)} on {label_BKHW.device}")


def known_pixels(label: Tensor, ignore: float) -> Tensor:
    """Return where a label [...,K,H,W] is known, bool [...,1,H,W]: all channels are finite and not
    `ignore`."""
    return (torch.isfinite(label) & (label != ignore)).all(-3, keepdim=True)


def histogram(index: Tensor, bins: int) -> Tensor:
    """Count how often each of 0 .. bins-1 occurs in the int64 `index`; int64 [bins]."""
    index = index.flatten()
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=bins)
    # On a GPU, bincount would make the host wait for the largest index. Scatter does not, and integers are
    # exact.
    counts = torch.zeros(bins, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a sum that starts at zero."""
    return torch.zeros(shape, dtype=dtype)


def ratio(numerator: float, denominator: float) -> float:
    """Return numerator / denominator, or NaN for 0 / 0: without valid pixels, a metric is undefined."""
    return numerator / denominator if denominator else float("nan")


def describe(x: object) -> str:
    """Describe the type and shape of an argument for messages."""
    if isinstance(x, (Tensor, np.ndarray)):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return type(x).__name__
