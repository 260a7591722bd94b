"""The kind `unit_vector`: every pixel has a direction in space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.errors import DataError
from dmtl.metrics import Angular, angle_deg, normalise
from dmtl.ops.arithmetic import SHORTEST
from dmtl.tasks.base import Range, Task, Words
from dmtl.tasks.palette import vector_colours
from dmtl.tasks.stored import Pixels, rounded

# A unit vector rounded to 8 bits always has a length in this range; black, grey and white do not: no label.
_ROUNDED_LENGTH = (0.5, 1.5)
_DECODED = np.arange(256, dtype=np.uint8) * np.float32(2 / 255) - 1
_UNKNOWN_GREY = np.isin(np.arange(256), (0, 127, 128, 255))
_TOLERANCE = {"f": 1e-3, "u": 0.01}  # allowed error of a length, for floats and for 8-bit codes


@dataclass(frozen=True, kw_only=True)
class UnitVector(Task):
    """Three logits that are normalised to a unit vector.

    The loss is the L1 distance to the label, summed over x, y, z, as published for normals. Labels are unit
    vectors. A pixel has no label if any component equals `ignore` or the vector is zero. Component 0 points
    along the image rows, so mirroring an image negates it.
    """

    kind = "unit_vector"
    channels = label_channels = 3
    decoding = "unit"
    unit_length = True
    reading_options = ()
    words = Words("directions", "unit vector", "angular spread of the noise samples")
    error_unit = uncertainty_unit = "degrees"
    primary = "mean"
    higher_is_better = False
    graded = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(abs(self.ignore) > 1, "ignore", "outside -1..1, where components are", self.ignore)

    def metric_unit(self, metric: str) -> str:
        return "°"

    def valid(self, label_BKHW: Tensor) -> Tensor:
        return super().valid(label_BKHW) & (label_BKHW != 0).any(-3, keepdim=True)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return (normalise(logits_BCHW, SHORTEST) - label_BKHW).abs().sum(1, keepdim=True)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "unit"}

    def mean_values(self, label_BKhwN: Tensor, valid_B1hwN: Tensor) -> Tensor:
        """Return the mean of the vectors, float32 [B,3,h,w]."""
        return normalise(super().mean_values(label_BKhwN, valid_B1hwN), SHORTEST)

    def from_values(self, mean_BDHW: Tensor) -> Tensor:
        return normalise(mean_BDHW, SHORTEST)

    def uncertainty(self, mean_BDHW: Tensor, variance_BHW: Tensor) -> Tensor:
        """Return the angular spread of the noise samples in degrees, 0 .. 90.

        It is asin sqrt(1 - R^2), where R is the length of the mean vector (Mardia and Jupp, Directional
        Statistics, 2000, section 9.2) and 1 - R^2 the variance of unit vectors. If the spread is small, it is
        the rms angle to the mean.
        """
        return torch.rad2deg(torch.asin(variance_BHW.clamp(0, 1).sqrt()))

    def error(self, map: Tensor, label_BKHW: Tensor) -> Tensor:
        """Return the angle to the label in degrees, float32 [B,H,W]."""
        return angle_deg(map.float(), label_BKHW.float())

    def map_difference(self, expected: Tensor, got: Tensor, logits: Callable[[], Tensor]) -> float:
        """Return the largest difference, weighted by min(1, length of the logits).

        The direction of a short vector of logits is not reliable.
        """
        if torch.equal(expected, got):
            return 0.0
        length_B1HW = logits().norm(dim=1, keepdim=True).clamp(max=1)
        return ((got - expected).abs() * length_B1HW).max().item()

    def new_metric(self) -> Angular:
        """Create a `dmtl.metrics.Angular`: mean, median, rms angle in degrees; percent within 11.25, 22.5,
        30."""
        return Angular(ignore=self.ignore)

    def _paint(self, values: np.ndarray, value_range: Range) -> np.ndarray:
        return vector_colours(values)

    def flip(self, label_KHW: Tensor) -> Tensor:
        mirrored_KHW = super().flip(label_KHW)
        x_1HW = torch.where(self.valid(mirrored_KHW), -mirrored_KHW[:1], mirrored_KHW[:1])
        return torch.cat([x_1HW, mirrored_KHW[1:]])

    def label_from_stored(self, stored: np.ndarray, *, numbers: bool, **_: float | None) -> Tensor:
        """Convert stored vectors to unit vectors; a code n means 2 n / 255 - 1.

        Vectors whose length is far from 1 mean "no label".
        """
        if stored.ndim != 3 or stored.shape[2] != 3 or (numbers and stored.dtype.kind != "f"):
            raise DataError(
                f"{stored.dtype} values of shape {list(stored.shape)}, "
                "expected an RGB PNG or a .npy of floats [H, W, 3]"
            )
        vector = stored.transpose(2, 0, 1).astype(np.float32, order="C")
        if not numbers:
            vector *= 2 / 255
            vector -= 1
        length = _lengths(*vector)
        known = (length > _ROUNDED_LENGTH[0]) & (length < _ROUNDED_LENGTH[1])  # False for NaN
        with np.errstate(divide="ignore", invalid="ignore"):
            vector /= length
        vector[:, ~known] = self.ignore
        return torch.from_numpy(vector)

    def label_to_stored(self, label_KHW: Tensor) -> np.ndarray:
        """Return float32 [H, W, 3], zeros in pixels without a label."""
        return torch.where(self.valid(label_KHW), label_KHW, 0.0).permute(1, 2, 0).numpy()

    def label_problem(self, label_KHW: Tensor) -> str | None:
        length = _lengths(*label_KHW.numpy())[self.valid(label_KHW)[0].numpy()]
        if len(length) and np.abs(length - 1).max() > 1e-3:
            return f"vectors of length {length.min():.4f} to {length.max():.4f}, expected 1 within 0.001"
        return None

    def stored_problem(self, stored: np.ndarray) -> str | None:
        """Return what is wrong if vectors are not of length 1, which `label_from_stored` would normalise.

        Zero and non-finite vectors mean "no label"; in codes (uint8) also black, mid-grey and white.
        """
        tolerance = _TOLERANCE[stored.dtype.kind]
        x, y, z = stored.transpose(2, 0, 1)
        if stored.dtype.kind == "u":
            known = (x != y) | (x != z) | ~_UNKNOWN_GREY[x]
            x, y, z = (_DECODED[code] for code in (x, y, z))
        else:
            x, y, z = (values.astype(np.float32) for values in (x, y, z))
            known = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & ((x != 0) | (y != 0) | (z != 0))
        length = _lengths(x, y, z)[known]
        wrong = np.abs(length - 1) > tolerance
        if not wrong.any():
            return None
        worst = length[np.abs(length - 1).argmax()]
        return (
            f"{wrong.mean():.2%} of its {len(length)} vectors have another length, the worst {worst:.4f}, "
            f"expected 1 within {tolerance:g}"
        )

    def map_from_stored(self, stored: np.ndarray, *, numbers: bool, **_: Any) -> np.ndarray:
        value = stored.astype(np.float32)
        return value if numbers else value / np.float32(127.5) - 1

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """Return x, y, z in -1 .. 1 as 8-bit red, green, blue."""
        return Pixels(np.moveaxis(rounded((map + 1.0) * 127.5, np.uint8), 0, -1))

    def map_format(self) -> dict[str, Any]:
        text = "8-bit RGB; component = value / 127.5 - 1"
        return {**self.meaning(), "png": text, "scale": 1 / 127.5, "offset": -1.0}


def _lengths(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors, given by component; no warning if they are not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sqrt(x * x + y * y + z * z)
