"""Compare the outputs of a file with the model's, on images that neither has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.diffusion import CounterNoise
from dmtl.engine.export.graph import outputs
from dmtl.errors import DataError, ExportError
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.tasks.base import relative_difference

TOLERANCE = 1e-4
IMAGES = 3

LoadedModel = Callable[[Tensor], Mapping[str, Tensor]]
"""A loaded file: images -> {task: output}, on the CPU."""


def probe(size: tuple[int, int]) -> Tensor:
    """Return uint8 [3, 3, H, W]: soft patches of colour with some grain, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, size[0] // 32 + 2, size[1] // 32 + 2, generator=generator)
    soft = F.interpolate(coarse, size, mode="bicubic", align_corners=True)
    grain = torch.randn(IMAGES, 3, *size, generator=generator)
    return (soft * 255 + 8 * grain).round().clamp(0, 255).to(torch.uint8)


class Expected:
    """The model's outputs for some images, every image with the noise of sample 0.

    images: float32, normalised, on the model's device. what, options: as for `graph.outputs`; the noise is
    that of `seed` unless they say otherwise.
    """

    def __init__(
        self,
        model: DiffusionMTL | MultiTaskBaseline,
        images: Tensor,
        what: str,
        seed: int,
        options: Mapping[str, Any],
    ):
        self.model, self.images, self.what = model, images, what
        self.options = {"noise": CounterNoise(seed, torch.zeros(len(images), dtype=torch.int64)), **options}
        self.outputs = {t: x.cpu() for t, x in outputs(model, images, what, **self.options).items()}
        for task, value in self.outputs.items():
            if not value.isfinite().all():
                raise DataError(f"{task}: the model's output is not finite")

    def differences(self, path: Path, run: LoadedModel, images: Tensor) -> dict[str, float]:
        """Return task -> largest difference, over all images as one batch and over only the first.

        Raises ExportError naming `path` if one is above the tolerance.
        """
        found = {}
        whole, single = run(images), run(images[:1])
        for task, value in self.outputs.items():
            found[task] = max(
                self._difference(task, value, whole[task]), self._difference(task, value[:1], single[task])
            )
            if not found[task] <= TOLERANCE:
                raise ExportError(
                    f"{path}: not written, because its {task} differs from the model's by {found[task]:.2g}, "
                    f"expected at most {TOLERANCE:g}"
                )
        return found

    def _difference(self, task: str, expected: Tensor, got: Tensor) -> float:
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return math.inf
        if self.what == "logits":
            return relative_difference(expected, got)
        return self.model.tasks[task].map_difference(
            expected, got, lambda: self._logits()[task][: len(expected)]
        )

    def _logits(self) -> dict[str, Tensor]:
        return {t: x.cpu() for t, x in outputs(self.model, self.images, "logits", **self.options).items()}
