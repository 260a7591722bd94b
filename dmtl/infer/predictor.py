"""Predict maps for images of any size: one image in memory, or files and folders into a folder of maps.

What `predict_files` writes, `<name>` being the file's name without suffix, below a given folder the path
there (see `find_images`):

    OUT/<task>/<name>.png           the map in its natural format (see `dmtl.infer.maps`)
    OUT/<task>/<name>.npy           unit vectors as float16 [3, H, W], with npy=True
    OUT/pictures/<task>/<name>.png  the map in colours
    OUT/overview/<name>.png         the image and all its pictures on one sheet
    OUT/maps.json                   how to read the maps, the images done, and the failures

Maps have the size of the upright image (EXIF orientation applied).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmtl.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from dmtl.diffusion import CounterNoise
from dmtl.errors import ConfigError, DataError, nearest
from dmtl.files import write_text
from dmtl.infer.images import read_image, to_rgb
from dmtl.infer.inputs import Failure, Input, find_images
from dmtl.infer.maps import describe_format, encode_map, encode_npy, encode_picture, overview
from dmtl.infer.output import FORMAT, RESERVED, Summary, output_folder, write_bytes
from dmtl.infer.progress import progress_bar


class Predictor:
    """A model ready to predict.

    Args:
        model: `DiffusionMTL` or a baseline; moved to `device` and set to eval mode.
        device: anything `torch.device` takes.
        steps, eta: sampler of this prediction; default as the model was configured.
        tasks: names of the maps wanted, default all.
        seed: of the chain's noise. Every image gets the same noise, so its maps do not depend on what else is
            predicted.

    Errors: ConfigError for a device that is not there, an unknown task (with the nearest name), or steps
    below 1.

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
        steps: int | None = None,
        eta: float | None = None,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if steps is not None and steps < 1:
            raise ConfigError(f"Predictor: steps must be at least 1, got {steps}")
        self.tasks = _chosen(model.tasks, tasks)
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.steps, self.eta, self.seed = steps, eta, seed
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, device: str | torch.device = "cpu", **options
    ) -> Predictor:
        """Reads the model folder that `save_pretrained` wrote.

        CheckpointError when it is missing, damaged or foreign.
        """
        from dmtl.models import load_model

        return cls(load_model(directory), device, **options)

    @torch.inference_mode()
    def predict(self, image: Tensor | Image.Image | str | os.PathLike) -> dict[str, Tensor]:
        """Decoded maps of one image, on the CPU: task -> [H, W], or [3, H, W] for unit vectors.

        Args:
            image: uint8 tensor [3, H, W] (RGB), Pillow image, or path of an image file.

        Errors: TypeError / ValueError for another image; DataError for a file that cannot be read.
        """
        image_1CHW = self._as_tensor(image)[None].to(self.device)
        normalised = (image_1CHW.float() / 255 - self._mean) / self._std
        noise = CounterNoise(self.seed)
        out = self.model.maps(normalised, list(self.tasks), steps=self.steps, eta=self.eta, noise=noise)
        for name, finite in out.finite.items():
            if not finite:
                raise DataError(f"{name}: the model's output is not finite")
        return {name: out.maps[name][0].cpu() for name in self.tasks}

    def predict_files(
        self,
        paths: Iterable[str | os.PathLike],
        out_dir: str | os.PathLike,
        *,
        pictures: bool = True,
        npy: bool = False,
        progress: bool | None = None,
    ) -> Summary:
        """Predict every image among `paths` (files and folders) into `out_dir`.

        The module's docstring says what the files are called. Inputs that cannot be read or do not fit into
        memory are skipped and listed in the summary.

        Args:
            out_dir: a new or empty folder, or one that `predict_files` filled before; files in it are
                replaced one by one.
            pictures: also write coloured pictures and overview sheets.
            npy: also write unit vectors as .npy.
            progress: show a progress bar on stderr; default only where stderr is a terminal.

        Errors: OSError, naming the path, when an output cannot be written (no permission, full disk), because
            no other could be either; DataError when `out_dir` holds other things; ConfigError when a task is
            called like one of our folders.
        """
        clash = [name for name in self.tasks if name in RESERVED]
        if clash:
            raise ConfigError(
                f"predict_files: tasks must not be called {' or '.join(RESERVED)}, got {clash[0]!r}"
            )
        summary = Summary(output_folder(out_dir))
        inputs, summary.failures = find_images(paths, summary.out_dir)
        done: list[dict] = []
        self._write_index(summary, done)  # first of all: tells at once whether the folder can be written
        start = time.perf_counter()
        try:
            with progress_bar(len(inputs), progress) as advance:
                for item in inputs:
                    try:
                        done.append(self._predict_file(item, summary.out_dir, pictures, npy))
                        summary.written.append(item.name)
                    except DataError as error:
                        reason = str(error).removeprefix(f"{item.path}: ")
                        summary.failures.append(Failure(str(item.path), reason))
                    advance()
        finally:  # also after Ctrl-C: what is there is described
            summary.seconds = time.perf_counter() - start
            self._write_index(summary, done)
        return summary

    def _predict_file(self, item: Input, out_dir: Path, pictures: bool, npy: bool) -> dict:
        image_CHW = read_image(item.path)
        height, width = image_CHW.shape[-2:]
        with _memory_errors(height, width):
            maps = self.predict(image_CHW)
        entry: dict[str, Any] = {"input": str(item.path), "name": item.name, "size": [height, width]}
        painted = {"image": image_CHW.permute(1, 2, 0).numpy()}
        for name, task in self.tasks.items():
            png, reading = encode_map(task, maps[name])
            write_bytes(out_dir / name / f"{item.name}.png", png)
            if reading:
                entry.setdefault("reading", {})[name] = reading
            if npy and task.kind == "unit_vector":
                write_bytes(out_dir / name / f"{item.name}.npy", encode_npy(maps[name]))
            if pictures:
                painted[name] = np.asarray(task.picture(maps[name]))
                write_bytes(out_dir / "pictures" / name / f"{item.name}.png", encode_picture(painted[name]))
        if pictures:
            write_bytes(out_dir / "overview" / f"{item.name}.png", encode_picture(overview(painted)))
        return entry

    def _as_tensor(self, image: Tensor | Image.Image | str | os.PathLike) -> Tensor:
        if isinstance(image, (str, os.PathLike)):
            return read_image(image)
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

    def _write_index(self, summary: Summary, done: list[dict]) -> None:
        index = {
            "format": FORMAT,
            "steps": self.steps,
            "eta": self.eta,
            "seed": self.seed,
            "tasks": {name: describe_format(task) for name, task in self.tasks.items()},
            "images": done,
            "failures": [asdict(failure) for failure in summary.failures],
        }
        write_text(summary.out_dir / "maps.json", json.dumps(index, indent=1) + "\n")


def _chosen(known: dict, wanted: Sequence[str] | None) -> dict:
    chosen = {}
    for name in known if wanted is None else wanted:
        if name not in known:
            close = nearest(name, known)
            hint = f" (did you mean {close!r}?)" if close else ""
            raise ConfigError(f"Predictor: tasks must be among {', '.join(known)}, got {name!r}{hint}")
        chosen[name] = known[name]
    if not chosen:
        raise ConfigError(f"Predictor: tasks must name at least one of {', '.join(known)}, got none")
    return chosen


def _device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"Predictor: device must be one that works here, got {device} ({first_line})"
        ) from None
    return device


@contextmanager
def _memory_errors(height: int, width: int):
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
