"""Joint transforms of an image and its labels, for every data set and task.

A transform is called as `transform(sample, tasks, rng)` and returns a new Sample. It never modifies its input
tensors, so samples can be cached. `rng` is a NumPy Generator, the only source of randomness.

The published recipe (PASCAL-Context, NYUD-v2) is: scale by U(0.5, 2) and crop at random, mirror, photometric
distortion, ImageNet normalisation, padding. A sample only contains visible labels, so hidden ones cannot
influence the augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.data.base import Sample
from dmtl.errors import DataError
from dmtl.nn.imagenet import IMAGENET_MEAN, IMAGENET_STD
from dmtl.tasks import Task

_SCALE = 1 / (255 * torch.tensor(IMAGENET_STD).view(3, 1, 1))
_SHIFT = -(torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)).view(3, 1, 1)
_CROP_ATTEMPTS = 10
_LOOK = 64  # judge the crop on at most this many rows and columns of the label

Transform = Callable[[Sample, Mapping[str, Task], np.random.Generator], Sample]


class Compose:
    """Apply transforms one after another."""

    def __init__(self, steps: Sequence[Transform]):
        self.steps = list(steps)

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, tasks, rng)
        return sample

    def __repr__(self) -> str:
        return " > ".join(type(step).__name__ for step in self.steps)


class RandomScaleCrop:
    """Magnify by s ~ U(scale) and crop at random, without padding: the result may be smaller than `size`.

    The crop is cut out before it is magnified, which gives the same picture (to one source pixel) with far
    less work. Label values change as `task.zoom` says: magnified depth is nearer.

    Args:
        size: maximum (height, width) of the result in pixels.
        scale: (low, high) of the uniform random factor s.
        max_ratio: try up to ten crops until no class covers more than this share of the crop (cat_max_ratio).
        balance: name of the task with these classes; without its label, the first crop is used.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        *,
        max_ratio: float = 0.75,
        balance: str = "semseg",
    ):
        self.size = check_size("RandomScaleCrop", size)
        low, high = scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"RandomScaleCrop: scale must be (low, high) with 0 < low <= high, got {scale}")
        if not 0 < max_ratio <= 1:
            raise ValueError(f"RandomScaleCrop: max_ratio must be in (0, 1], got {max_ratio}")
        self.scale, self.max_ratio, self.balance = (float(low), float(high)), max_ratio, balance

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Sample:
        factor = rng.uniform(*self.scale)
        height, width = sample.size
        # If the magnified image is smaller than the crop, all of it is used.
        crop_h, crop_w = (min(n, max(1, round(wish / factor))) for n, wish in zip(sample.size, self.size))
        out_h, out_w = (min(wish, max(1, round(n * factor))) for n, wish in zip(sample.size, self.size))
        judge = sample.labels.get(self.balance) if self.max_ratio < 1 else None
        for _ in range(_CROP_ATTEMPTS):
            top, left = int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1))
            window = (..., slice(top, top + crop_h), slice(left, left + crop_w))
            if judge is None or self._varied(judge[window], tasks[self.balance].ignore):
                break
        labels = {name: label[window] for name, label in sample.labels.items()}
        sample = resize(replace(sample, image=sample.image[window], labels=labels), (out_h, out_w), tasks)
        labels = {n: tasks[n].zoom(tasks[n].crop(label), factor) for n, label in sample.labels.items()}
        return replace(sample, labels=labels)

    def _varied(self, label_KHW: Tensor, ignore: float) -> bool:
        step_y, step_x = (-(-n // _LOOK) for n in label_KHW.shape[-2:])
        ids = label_KHW[0, ::step_y, ::step_x].numpy()
        counts = np.bincount(ids[ids != ignore].ravel())
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.max_ratio * counts.sum())


class Resize:
    """Resize image and labels to `size` = (height, width). Label values do not change, not even depth."""

    def __init__(self, size: tuple[int, int]):
        self.size = check_size("Resize", size)

    def __call__(
        self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator | None = None
    ) -> Sample:
        return resize(sample, self.size, tasks)


class HorizontalFlip:
    """Mirror left to right with probability `p`; each task adapts its label values (normals)."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"HorizontalFlip: p must be in [0, 1], got {p}")
        self.p = p

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        labels = {name: tasks[name].flip(label) for name, label in sample.labels.items()}
        return replace(sample, image=sample.image.flip(-1), labels=labels)


class Photometric:
    """Change brightness, contrast, saturation and hue, each with probability 1/2 (the ranges of SSD).

    All four are linear in RGB, so they are one 3x3 matrix and an offset: x' = contrast * hue * saturation
    * x + b. Saturation mixes with the grey of the same luma; hue rotates the colour plane of YIQ. The image
    becomes float32 in [0, 255].
    """

    def __init__(
        self,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue_deg: float = 18.0,
    ):
        self.brightness, self.hue_deg = brightness, hue_deg
        self.contrast, self.saturation = contrast, saturation

    def __call__(self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator) -> Sample:
        chosen, where = rng.random(4) < 0.5, rng.random(4)
        offset = (2 * where[0] - 1) * self.brightness if chosen[0] else 0.0
        contrast, saturation = (
            low + (high - low) * where[i] if chosen[i] else 1.0
            for i, (low, high) in ((1, self.contrast), (2, self.saturation))
        )
        hue = (2 * where[3] - 1) * self.hue_deg if chosen[3] else 0.0
        matrix = torch.from_numpy(contrast * colour_matrix(saturation, hue)).float()
        image = sample.image.float()
        # SSD changes brightness before contrast, which therefore scales the offset.
        mixed = torch.addmm(image.new_tensor(contrast * offset), matrix, image.reshape(3, -1)).clamp_(0, 255)
        return replace(sample, image=mixed.view(image.shape))


class Normalise:
    """Normalise the image of a sample (`normalise`)."""

    def __call__(
        self, sample: Sample, tasks: Mapping[str, Task] | None = None, rng: np.random.Generator | None = None
    ) -> Sample:
        return replace(sample, image=normalise(sample.image))


class PadTo:
    """Pad a normalised sample at the bottom and right to `size` = (height, width).

    The image is padded with 0 (the mean colour), labels with `ignore`. ValueError for a larger sample.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = check_size("PadTo", size)

    def __call__(
        self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator | None = None
    ) -> Sample:
        (height, width), (rows, columns) = sample.size, self.size
        if (height, width) == self.size:
            return sample
        if height > rows or width > columns:
            raise ValueError(
                f"PadTo: sample must be at most {rows}x{columns}, got {height}x{width} ({sample.id})"
            )
        padded = _padded(sample, tasks, (0, columns - width, 0, rows - height))
        return replace(padded, valid_size=sample.valid_size or (height, width))


class InFrame:
    """Pad a normalised sample on all sides to `size` = (height, width), as in the published evaluation.

    The image is padded with 0 (the mean colour), labels with `ignore`. If a margin is odd, the smaller half
    is at the top or left.

    Raises:
        DataError: the image is larger than the frame.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = check_size("InFrame", size)

    def __call__(
        self, sample: Sample, tasks: Mapping[str, Task], rng: np.random.Generator | None = None
    ) -> Sample:
        (height, width), (rows, columns) = sample.size, self.size
        if height > rows or width > columns:
            raise DataError(
                f"{sample.id}: image of {width}x{height} pixels, expected at most {columns}x{rows}, the frame"
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        margin = (left, columns - width - left, top, rows - height - top)
        padded = _padded(sample, tasks, margin)
        valid_at = (top + sample.valid_at[0], left + sample.valid_at[1])
        return replace(padded, valid_size=sample.valid_size or (height, width), valid_at=valid_at)


def train_transform(
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
    photometric: bool = True,
) -> Compose:
    """Return the published augmentation.

    Args:
        size: (height, width) of the crops; smaller images are padded.
        scale: range of the random magnification; (1, 1): only crop.
        flip: mirror with probability 1/2.
        photometric: change brightness, contrast, saturation and hue.
    """
    return Compose(
        [
            RandomScaleCrop(size, scale),
            *([HorizontalFlip()] if flip else []),
            *([Photometric()] if photometric else []),
            Normalise(),
            PadTo(size),
        ]
    )


def eval_transform(size: tuple[int, int] | None = None, frame: tuple[int, int] | None = None) -> Compose:
    """Return the transform for evaluation, which is not random.

    Args:
        size: (height, width) to resize to; None: keep the size.
        frame: (height, width) to pad to after normalisation (`InFrame`); None: no padding.
    """
    resizing = [Resize(size)] if size is not None else []
    return Compose([*resizing, Normalise(), *([InFrame(frame)] if frame is not None else [])])


def normalise(image: Tensor) -> Tensor:
    """Normalise RGB in [0, 255], [..., 3, H, W] of any dtype and device, by ImageNet's mean and deviation.

    Returns:
        float32 of the same shape.
    """
    shift, scale = (constant.to(image.device, non_blocking=True) for constant in (_SHIFT, _SCALE))
    return torch.addcmul(shift, image.float(), scale)


def _padded(sample: Sample, tasks: Mapping[str, Task], margin: tuple[int, int, int, int]) -> Sample:
    """Pad a sample by `margin` = (left, right, top, bottom) pixels."""
    labels = {name: F.pad(label, margin, value=tasks[name].ignore) for name, label in sample.labels.items()}
    return replace(sample, image=F.pad(sample.image, margin), labels=labels)


def resize(sample: Sample, size: tuple[int, int], tasks: Mapping[str, Task]) -> Sample:
    """Resize the image by anti-aliased bilinear interpolation, labels by `resize_label`."""
    if sample.size == tuple(size):
        return sample
    image = F.interpolate(sample.image[None], size=size, mode="bilinear", antialias=True)[0]
    labels = {name: resize_label(label, size, tasks[name]) for name, label in sample.labels.items()}
    return replace(sample, image=image, labels=labels)


def resize_label(label_KHW: Tensor, size: tuple[int, int], task: Task) -> Tensor:
    """Resize a label [K, H, W] by taking nearest pixels, so that values are never mixed with each other.

    Shrinking would break up a thin class (edges), so thin tasks use `resize_thin`.
    """
    return (resize_thin if task.thin else resize_nearest)(label_KHW, size)


def resize_nearest(label_KHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label [K, H, W] to `size` = (height, width) by taking the nearest source pixels."""
    height, width = label_KHW.shape[-2:]
    rows, columns = size
    y = ((torch.arange(rows) * 2 + 1) * height).div(
        2 * rows, rounding_mode="floor"
    )  # floor((i + 1/2) H / rows)
    x = ((torch.arange(columns) * 2 + 1) * width).div(2 * columns, rounding_mode="floor")
    return label_KHW[:, y][:, :, x]


def resize_thin(label_KHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a thin label [K, H, W] to `size` = (height, width) without breaking its lines.

    As `resize_nearest`, but a target pixel is 1 if any source pixel that falls into it is 1. Each source
    pixel falls into exactly one target pixel, so lines stay connected and do not get thicker.
    """
    height, width = label_KHW.shape[-2:]
    rows, columns = size
    out = resize_nearest(label_KHW, size)
    if rows < height or columns < width:
        if rows <= height and columns <= width:
            out[out == 1] = 0  # a target's nearest pixel may belong to its neighbour
        k, at_y, at_x = (label_KHW == 1).nonzero(as_tuple=True)
        out[k, at_y * rows // height, at_x * columns // width] = 1
    return out


def colour_matrix(saturation: float, hue_deg: float) -> np.ndarray:
    """Return the 3x3 RGB matrix that scales chroma by `saturation`, rotates it in YIQ and keeps luma."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    c, s = (saturation * f(math.radians(hue_deg)) for f in (math.cos, math.sin))
    return np.linalg.inv(to_yiq) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ to_yiq


def check_size(where: str, size: Sequence[int]) -> tuple[int, int]:
    """Return `size` as (height, width) of positive integers."""
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"{where}: size must be (height, width) of positive integers, got {size!r}")
    return size[0], size[1]
