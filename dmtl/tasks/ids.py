"""What the kinds `classes` and `binary` share: every pixel has one of a few answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmtl.errors import DataError
from dmtl.tasks.base import Task
from dmtl.tasks.stored import listed


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
