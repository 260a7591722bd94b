"""Predict maps for images of any size: one image in memory, or files and folders into a folder of maps
(`dmtl.predict.outputs` says what is written there)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise
from dmtl.engine.engine import Engine
from dmtl.errors import ConfigError, DataError
from dmtl.predict.images import read_image, to_rgb
from dmtl.predict.inputs import find_inputs
from dmtl.predict.maps import describe_uncertainty
from dmtl.predict.outputs import RESERVED, Maps, Outputs, Summary, output_folder
from dmtl.predict.progress import progress_bar
from dmtl.predict.stream import Stream
from dmtl.predict.video import require_av
from dmtl.runtime.devices import pick_device
from dmtl.tasks import chosen_tasks

GPU_BATCH = 8
_GPU_BATCH_PIXELS = 8 * 512 * 512  # in a batch whose size nobody chose


@dataclass
class Computed:
    """Maps of a batch on their way to the CPU, one for each image; an error where there are none."""

    maps: list[Maps | DataError]
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the maps may be read."""
        if self.copied is not None:
            self.copied.synchronize()

    @property
    def finite(self) -> bool:
        """All maps are; call `wait` first."""
        return all(bool(f) for m in self.maps if isinstance(m, Maps) for f in m.finite.values())


class Predictor:
    """A model ready to predict.

    Args:
        model: `DiffusionMTL` or a baseline; an `Engine` is made of it.
        device: anything `torch.device` takes, or "auto".
        steps, eta, sampler: of the chain, as in `DiffusionMTL.forward`; default as the model
            was configured. steps may be "auto": as
            many as it takes until the maps no longer change.
        tasks: names of the maps wanted, default all.
        seed: of the chain's noise. Every image gets the same noise, so its maps do not depend on what else is
            predicted.
        precision: "fp32", "tf32", "bf16", "fp16", or "auto": what suits the device.
        samples: draws of the noise that are averaged; from 2 on there are uncertainty maps too.
        batch_size: images of equal size that are computed together; default 1 on a CPU and up to 8 on a GPU.
        tile: side of the tiles of large images in pixels, 0: never, default: where memory would not suffice.

    Errors: ConfigError for a device that is not there, an unknown task (with the nearest name), and options
    that cannot work.

    Example:
        >>> predictor = Predictor.from_pretrained("runs/demo/diffusion/model")
        >>> predictor.predict("street.jpg")["semseg"].shape
        torch.Size([480, 640])
    """

    def __init__(
        self,
        model: Any,
        device: str | torch.device = "cpu",
        *,
        steps: int | str | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
        precision: str = "auto",
        samples: int = 1,
        batch_size: int | None = None,
        tile: int | None = None,
        inplace: bool = False,
    ):
        for option, value in (("steps", steps), ("samples", samples), ("batch_size", batch_size)):
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"Predictor: {option} must be at least 1, got {value}")
        if steps == "auto" and (batch_size or 1) > 1:
            raise ConfigError(
                f'Predictor: batch_size must be 1 with steps="auto" (it looks at the batch), got {batch_size}'
            )
        self.tasks = {name: model.tasks[name] for name in chosen_tasks("Predictor", model.tasks, tasks)}
        self.device = pick_device(device)
        self.steps, self.chain = steps, {"steps": steps, "eta": eta, "sampler": sampler}
        self.seed, self.samples, self.batch_size = seed, samples, batch_size
        options = self.chain | {"samples": samples, "tile": tile, "inplace": inplace}
        self.engine = Engine(model, self.device, precision=precision, tasks=list(self.tasks), **options)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, device: str | torch.device = "cpu", **options
    ) -> Predictor:
        """Reads the model folder that `save_pretrained` wrote.

        CheckpointError when it is missing, damaged or foreign.
        """
        from dmtl.models import load_model

        return cls(load_model(directory), device, inplace=True, **options)

    def predict(self, image: Tensor | Image.Image | str | os.PathLike) -> dict[str, Tensor]:
        """Decoded maps of one image, on the CPU: task -> [H, W], or [3, H, W] for unit vectors.

        Args:
            image: uint8 tensor [3, H, W] (RGB), Pillow image, or path of an image file.

        Errors: TypeError / ValueError for another image; DataError for a file that cannot be read.
        """
        computed = self._computed([_as_tensor(image)])
        computed.wait()
        (maps,) = computed.maps
        maps.check()
        return maps.maps

    def predict_files(
        self,
        paths: Iterable[str | os.PathLike],
        out_dir: str | os.PathLike,
        *,
        pictures: bool = True,
        npy: bool = False,
        every: int = 1,
        frames: int | None = None,
        progress: bool | None = None,
    ) -> Summary:
        """Predict every image and every video among `paths` (files and folders) into `out_dir`.

        Reading, computing and writing overlap. Inputs that cannot be read or do not fit into memory are
        skipped and listed in the summary; of a damaged video the frames before the damage are kept.

        Args:
            out_dir: a new or empty folder, or one that `predict_files` filled before; files in it are
                replaced one by one.
            pictures: also write coloured pictures and overview sheets.
            npy: also write unit vectors as .npy.
            every: of a video, take every n-th frame.
            frames: of a video, take at most so many.
            progress: show a progress bar on stderr; default only where stderr is a terminal.

        Errors: OSError, naming the path, when an output cannot be written (no permission, full disk), because
            no other could be either; DataError when `out_dir` holds other things; ConfigError when a task is
            called like one of our folders, for every or frames below 1, and when nothing but videos is given
            and PyAV is missing.
        """
        self._check_files(every, frames)
        summary = Summary(output_folder(out_dir))
        inputs, summary.failures = find_inputs(paths, summary.out_dir)
        if inputs and all(item.is_video for item in inputs):
            require_av()
        outputs = Outputs(summary.out_dir, self.tasks, pictures=pictures, npy=npy)
        images: list[dict] = []
        options = {**self.chain, "seed": self.seed}
        options |= {"samples": self.samples, "precision": self.engine.precision}
        if self.samples > 1:
            options["uncertainty"] = {name: describe_uncertainty(task) for name, task in self.tasks.items()}
        outputs.write_index(summary, images, options)  # first of all: tells whether the folder can be written
        start = time.perf_counter()
        try:
            with progress_bar(len(inputs), progress) as bar:
                Stream(self, outputs, summary, images, bar, every=every, frames=frames).run(inputs)
        finally:  # also after Ctrl-C: what is there is described
            summary.seconds = time.perf_counter() - start
            outputs.write_index(summary, images, options)
        return summary

    def compute(self, images: Sequence[Tensor]) -> Computed:
        """Maps of images uint8 [3, H, W] of one size. Where the memory does not suffice for all together they
        are computed one by one, and an image too large for it gets a DataError for its maps.

        On a GPU this returns before the maps are there.
        """
        height, width = images[0].shape[-2:]
        try:
            with _memory_errors(height, width):
                return self._computed(images)
        except DataError as error:
            if len(images) == 1:
                return Computed([error])
        return self.compute_singly(images)

    def compute_singly(self, images: Sequence[Tensor]) -> Computed:
        """`compute` for each image alone."""
        parts = [self.compute([image]) for image in images]
        copies = [part.copied for part in parts if part.copied is not None]
        return Computed([part.maps[0] for part in parts], copies[-1] if copies else None)

    def batch_limit(self, height: int, width: int) -> int:
        """Images of this size that are computed together at most."""
        if self.batch_size is not None:
            return self.batch_size
        if self.device.type != "cuda" or self.steps == "auto":
            return 1
        return max(1, min(GPU_BATCH, _GPU_BATCH_PIXELS // (height * width)))

    @torch.inference_mode()
    def _computed(self, images: Sequence[Tensor]) -> Computed:
        batch = torch.stack([image.to(self.device, non_blocking=True) for image in images])
        noise = CounterNoise(self.seed, torch.zeros(len(images), dtype=torch.int64, device=self.device))
        out = self.engine.maps(normalise(batch), list(self.tasks), noise=noise)
        maps, finite, uncertainty = (
            {name: torch.as_tensor(value).to("cpu", non_blocking=True) for name, value in part.items()}
            for part in (out.maps, out.finite, out.uncertainty)
        )
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        steps = out.steps if self.steps == "auto" else None
        rows = [
            Maps({t: m[i] for t, m in maps.items()}, finite, {t: u[i] for t, u in uncertainty.items()}, steps)
            for i in range(len(images))
        ]
        return Computed(rows, copied)

    def _check_files(self, every: int, frames: int | None) -> None:
        clash = [name for name in self.tasks if name in RESERVED]
        if clash:
            known = f"{', '.join(RESERVED[:-1])} or {RESERVED[-1]}"
            raise ConfigError(f"predict_files: tasks must not be called {known}, got {clash[0]!r}")
        for option, value in (("every", every), ("frames", frames)):
            if value is not None and value < 1:
                raise ConfigError(f"predict_files: {option} must be at least 1, got {value}")


def _as_tensor(image: Tensor | Image.Image | str | os.PathLike) -> Tensor:
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"predict: image must be a uint8 tensor, a Pillow image or a path, got {type(image).__name__}"
        )
    if image.dtype != torch.uint8:
        raise TypeError(
            f"predict: image must be a uint8 tensor [3, H, W], got {image.dtype} {list(image.shape)}"
        )
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(
            f"predict: image must be a uint8 tensor [3, H, W] with pixels, got {list(image.shape)}"
        )
    return image


@contextmanager
def _memory_errors(height: int, width: int) -> Iterator[None]:
    """An image too large for the memory is that image's failure, not the run's."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if (
            isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or "allocate memory" in text
            or "out of memory" in text
        ):
            raise DataError(f"not enough memory for {width}x{height} pixels") from error
        raise
