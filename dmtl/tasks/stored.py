"""Convert labels and predictions of a task to the arrays in their files, and back.

Only arrays are converted here; other packages read and write the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dmtl.errors import ConfigError, DataError
from dmtl.text import shortened

LINEAR = "16-bit grey; value = offset + scale * pixel, with offset and scale of each image"


@dataclass(frozen=True)
class Pixels:
    """A prediction as the pixels of a PNG file.

    Attributes:
        values: uint8 or uint16 [H, W], or uint8 [H, W, 3].
        palette: colours of the values of an 8-bit image, uint8 [n, 3]; None: no palette.
        reading: {"offset": ..., "scale": ...} of this file: value = offset + scale * pixel. Empty if all
            files of the task are read in the same way.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    reading: dict[str, float] = field(default_factory=dict)


class Stored:
    """The part of `Task` that converts labels and predictions to arrays in files, and back.

    The methods here suit tasks of numbers, K for each pixel; other kinds override them.
    """

    kind: ClassVar[str]
    label_channels: ClassVar[int] = 1
    # Keys of dataset.yaml that say how the files of labels are read.
    reading_options: ClassVar[tuple[str, ...]] = ("scale", "unknown")
    label_dtype: ClassVar[torch.dtype] = torch.float32
    map_dtype: ClassVar[torch.dtype] = torch.float32  # of decoded predictions

    # Defined by `Task`.
    name: str
    ignore: float
    valid: Callable[[Tensor], Tensor]

    def reading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check the options of dataset.yaml that say how labels are read.

        Args:
            options: those of `scale`, `unknown`, `values` and `colors` that are set.

        Returns:
            Keyword arguments of `label_from_stored`, in plain values.

        Raises:
            ConfigError: this kind does not have the option, or its value cannot work.
        """
        for key, value in options.items():
            if key not in self.reading_options:
                known = ", ".join(self.reading_options) or "none"
                raise ConfigError(
                    f"task {self.name!r}: {key} does not apply to files of kind {self.kind}, "
                    f"expected one of {known}"
                )
            if key in ("scale", "unknown"):
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not number or not abs(value) < 1e300:
                    raise ConfigError(f"task {self.name!r}: {key} is {value!r:.80}, expected a number")
        if options.get("scale", 1) <= 0:
            raise ConfigError(f"task {self.name!r}: scale is {options['scale']}, expected a positive number")
        return dict(options)

    def label_from_stored(
        self, stored: np.ndarray, *, numbers: bool, scale: float | None = None, unknown: float | None = None
    ) -> Tensor:
        """Convert the values stored in a label's file to the label.

        Args:
            stored: [H, W] or [H, W, K].
            numbers: True for actual numbers, as in a .npy; False for 8- or 16-bit codes, as in a PNG.
            scale: value of one step of a stored whole number; stored floats are not scaled.
            unknown: the stored number that means "no label"; None: 0 in codes, none in numbers.

        Returns:
            [K, H, W] of `label_dtype`; `ignore` in pixels without a label.

        Raises:
            DataError: the values cannot be a label of this task; the message says what was expected.
        """
        stored_KHW = self._channels_first(stored)
        unknown = 0 if unknown is None and not numbers else unknown
        if scale is None and not numbers:
            raise DataError(
                f"whole numbers without a unit, expected `scale:` (units per step) for task {self.name!r} in "
                "dataset.yaml, or a .npy of floats"
            )
        with np.errstate(over="ignore"):
            value = stored_KHW.astype(np.float32)
        if scale is not None and stored.dtype.kind != "f":
            value *= np.float32(scale)
        known = np.isfinite(value)
        if unknown is not None:
            known &= stored_KHW != unknown
        return torch.from_numpy(np.where(known.all(0), self._not_ignored(value), np.float32(self.ignore)))

    def _not_ignored(self, value: np.ndarray) -> np.ndarray:
        """Return known numbers, float32, with those that equal `ignore` changed to the nearest other
        float."""
        return value

    def label_to_stored(self, label_KHW: Tensor) -> np.ndarray:
        """Convert a label to the values to store in a file; `label_from_stored` converts them back.

        Returns:
            uint8 [H, W] of ids; or float32 [H, W] or [H, W, K] of numbers, NaN in pixels without a label.
        """
        label_KHW = torch.where(self.valid(label_KHW), label_KHW, torch.nan)
        return (label_KHW[0] if self.label_channels == 1 else label_KHW.permute(1, 2, 0)).numpy()

    def label_problem(self, label_KHW: Tensor) -> str | None:
        """Return what is wrong with the values of a label, whose shape and dtype are right; None if nothing
        is."""
        return None

    def stored_problem(self, stored: np.ndarray) -> str | None:
        """Return what is wrong with stored values that `label_from_stored` accepts nevertheless; else
        None."""
        return None

    def map_from_stored(
        self, stored: np.ndarray, *, numbers: bool, reading: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Convert the values stored in a prediction's file to the prediction.

        Args:
            stored: [H, W], or [K, H, W] for vectors.
            numbers: as in `label_from_stored`.
            reading: (scale, offset) of codes: value = offset + scale * code.

        Returns:
            The map in the form of `Task.decode` for one image: int64 or float32 [H, W], or float32 [K, H, W].

        Raises:
            DataError: the values cannot be a prediction of this task.
        """
        if numbers:
            return stored.astype(np.float32)
        if reading is None:
            raise DataError(
                f"whole numbers without a unit, expected a .npy of floats, or tasks.{self.name}.scale in "
                "maps.json"
            )
        return (stored * reading[0] + reading[1]).astype(np.float32)

    def assumed_reading(self, most: int | None) -> tuple[float, float] | None:
        """Return the default (scale, offset) of codes in a file that does not say; None if there is no
        default.

        Args:
            most: the largest code that the file can hold; None for palette indices.
        """
        return None

    def map_to_pixels(self, map: np.ndarray) -> Pixels:
        """Convert a prediction, [H, W] or [K, H, W] for vectors, to pixels, as precisely as these allow."""
        return linear_pixels(map)

    def map_format(self) -> dict[str, Any]:
        """Return a description for maps.json of how to read the pixels of predictions."""
        return {**self.meaning(), "png": LINEAR}

    def meaning(self) -> dict[str, Any]:
        """Return what predictions mean, for maps.json: tasks of equal meaning can be compared."""
        return {"kind": self.kind}

    def _channels_first(self, stored: np.ndarray) -> np.ndarray:
        """Return values [H, W] or [H, W, K] as [K, H, W]; DataError for another shape."""
        stored_HWK = stored[:, :, None] if stored.ndim == 2 else stored
        if stored_HWK.ndim != 3 or stored_HWK.shape[2] != self.label_channels:
            expected = "one value per pixel, grey or palette"
            if self.label_channels > 1:
                expected = f"[H, W, {self.label_channels}]"
            raise DataError(f"{stored.dtype} values of shape {list(stored.shape)}, expected {expected}")
        return np.moveaxis(stored_HWK, 2, 0)


def linear_pixels(value_HW: np.ndarray) -> Pixels:
    """Encode numbers in 16 bits that span the range from the smallest to the largest one."""
    low, high = float(value_HW.min()), float(value_HW.max())
    scale = (high - low) / 65535 or 1.0
    stored = rounded((value_HW.astype(np.float64) - low) / scale, np.uint16)
    return Pixels(stored, reading={"offset": low, "scale": scale})


def rounded(value: np.ndarray, dtype: type) -> np.ndarray:
    """Round to the nearest whole number that an unsigned dtype can hold."""
    return np.rint(np.clip(value, 0, np.iinfo(dtype).max)).astype(dtype)


def listed(values: np.ndarray) -> str:
    """Return the distinct values as text for messages, at most eight of them."""
    return shortened(np.unique(values))
