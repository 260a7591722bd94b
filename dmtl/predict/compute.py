"""Predict batches of images with the engine, with a fallback if memory does not suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.errors import DataError
from dmtl.predict.outputs import ImageMaps
from dmtl.runtime.memory import is_out_of_memory

GPU_BATCH = 8
_GPU_BATCH_PIXELS = 8 * 512 * 512  # pixels of a batch on a GPU, if its size was not set


@dataclass
class PredictedBatch:
    """The results of a batch, which may still be on their way to the CPU: maps or an error for each image."""

    maps: list[ImageMaps | DataError]
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until the maps are on the CPU."""
        if self.copied is not None:
            self.copied.synchronize()

    @property
    def finite(self) -> bool:
        """Return whether all maps are finite; call `wait` first."""
        return all(bool(f) for m in self.maps if isinstance(m, ImageMaps) for f in m.finite.values())


class BatchPredictor:
    """Predict maps of images of one size together.

    Args:
        engine: a `dmtl.Engine`; its default tasks are predicted.
        device: device of the engine.
        tasks: names of the tasks that the engine predicts.
        seed: seed of the noise, which is the same for every image.
        batch_size: maximum number of images in a batch; None: 1 on a CPU, up to 8 on a GPU.
    """

    def __init__(
        self, engine: Engine, device: torch.device, tasks: list[str], seed: int, batch_size: int | None
    ):
        self.engine, self.device, self.tasks = engine, device, tasks
        self.seed, self.batch_size = seed, batch_size

    def limit(self, height: int, width: int) -> int:
        """Return the maximum number of images of this size in a batch."""
        if self.batch_size is not None:
            return self.batch_size
        if self.device.type != "cuda" or self.engine.steps == "auto":
            return 1
        fitting = max(1, min(GPU_BATCH, _GPU_BATCH_PIXELS // (height * width)))
        return 1 << (fitting.bit_length() - 1)  # a power of two, so that whole batches fill a unit of inputs

    def __call__(self, images: Sequence[Tensor]) -> PredictedBatch:
        """Predict uint8 images [3, H, W] of one size.

        If memory does not suffice for the batch, images are predicted one by one. An image that still does
        not fit gets a DataError instead of maps. On a GPU, this returns before the maps are on the CPU.
        """
        try:
            return self._together(images)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if len(images) > 1:
            return self.singly(images)
        height, width = images[0].shape[-2:]
        return PredictedBatch([DataError(f"not enough memory for {width}x{height} pixels")])

    def singly(self, images: Sequence[Tensor]) -> PredictedBatch:
        """Predict the images one by one."""
        parts = [self([image]) for image in images]
        copies = [part.copied for part in parts if part.copied is not None]
        return PredictedBatch([part.maps[0] for part in parts], copies[-1] if copies else None)

    @torch.inference_mode()
    def _together(self, images: Sequence[Tensor]) -> PredictedBatch:
        batch = torch.stack([image.to(self.device, non_blocking=True) for image in images])
        noise = CounterNoise(self.seed, torch.zeros(len(images), dtype=torch.int64, device=self.device))
        out = self.engine.maps(normalise(batch), self.tasks, noise=noise)
        maps, finite, uncertainty = (
            {name: torch.as_tensor(value).to("cpu", non_blocking=True) for name, value in part.items()}
            for part in (out.maps, out.finite, out.uncertainty)
        )
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        steps = out.steps if self.engine.steps == "auto" else None
        rows: list[ImageMaps | DataError] = [
            ImageMaps(
                {t: m[i] for t, m in maps.items()}, finite, {t: u[i] for t, u in uncertainty.items()}, steps
            )
            for i in range(len(images))
        ]
        return PredictedBatch(rows, copied)
