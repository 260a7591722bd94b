"""What the page shows: the predictions for one photo, at every step of the chain."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from shutil import make_archive
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmtl.data.images import read_image
from dmtl.data.loading.transforms import normalise
from dmtl.engine.engine import Engine
from dmtl.engine.scale import downscale_for, downscaled
from dmtl.errors import DataError
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.models.initial import decode, factor_of
from dmtl.predict.predictor import Predictor
from dmtl.runtime.memory import is_out_of_memory
from dmtl.tasks import Task
from dmtl.tasks.base import Range
from dmtl.tasks.palette import heat
from dmtl.text import number, plural
from dmtl.train.pictures import colour_scale

MOST_PIXELS = 1 << 19  # of a photo on the page; larger ones are shown smaller


@dataclass(frozen=True)
class Options:
    """How to predict, as in `dmtl.Engine`."""

    steps: int
    sampler: str
    samples: int = 1


@dataclass(frozen=True)
class Averaged:
    """The mean of several noise samples, at the size of the shown photo, on the CPU.

    Attributes:
        maps: task -> decoded map.
        uncertainty: task -> float32 [H, W].
    """

    maps: dict[str, Tensor]
    uncertainty: dict[str, Tensor]


@dataclass(frozen=True)
class Analysis:
    """One photo and what the model predicts for it.

    Attributes:
        path: of the photo.
        options: it was predicted with these.
        image: uint8 [3, H, W], the photo as the page shows it.
        reduced: pixels of the photo to each of `image`, in both directions.
        downscale: pixels of `image` to each that the network saw, in both directions.
        stages: caption -> task -> logits [1, C, h, w] on the CPU, in the order of the chain.
        averaged: shown after the last stage; None for one noise sample.
        scales: task -> ends of the colours at all stages.
    """

    path: Path
    options: Options
    image: Tensor
    reduced: int
    downscale: int
    stages: dict[str, dict[str, Tensor]]
    averaged: Averaged | None
    scales: dict[str, Range]

    @property
    def captions(self) -> list[str]:
        """Return the names of what can be shown, in the order of the chain."""
        mean = [] if self.averaged is None else [f"mean of {plural(self.options.samples, 'sample')}"]
        return [*self.stages, *mean]


class Viewer:
    """A model, ready to analyse photos. Calls from several threads wait for each other.

    Args:
        model: on the device that computes; it is not modified.
    """

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline):
        self.model, self.tasks = model.eval(), model.tasks
        self._engine = Engine(model)
        self._lock = Lock()

    def analyse(self, path: str | os.PathLike, options: Options) -> Analysis:
        """Predict a photo at every step of the chain.

        Raises:
            DataError: not a readable image, maps that are not finite, or not enough memory.
        """
        photo = read_image(path)
        reduced = math.ceil(math.sqrt(photo.shape[1] * photo.shape[2] / MOST_PIXELS))
        image = downscaled(photo[None].float(), reduced)[0].round().byte() if reduced > 1 else photo
        try:
            with self._lock, torch.inference_mode():
                return self._analyse(Path(path), image, reduced, options)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise DataError(f"not enough memory for {image.shape[2]}x{image.shape[1]} pixels")

    def _analyse(self, path: Path, image: Tensor, reduced: int, options: Options) -> Analysis:
        model, (height, width) = self.model, (image.shape[1], image.shape[2])
        batch = normalise(image.to(model.device))[None]
        downscale = downscale_for(model.config.image_size, height, width)
        chain: dict[str, Any] = {"steps": options.steps, "sampler": options.sampler}
        prediction = model(downscaled(batch, downscale), **chain, trace=True, upsampled=False)
        found: dict[str, dict[str, Tensor]] = {}
        for name in self.tasks:
            for caption, logits in prediction.stages(name):
                if not logits.isfinite().all():
                    raise DataError(f"{name}: the model's output is not finite")
                found.setdefault(caption, {})[name] = logits.float().cpu()
        averaged = None
        if options.samples > 1 and isinstance(model, DiffusionMTL):
            out = self._engine.maps(batch, **chain, samples=options.samples)
            maps, unsure = ({k: v[0].cpu() for k, v in x.items()} for x in (out.maps, out.uncertainty))
            averaged = Averaged(maps, unsure)
        size = (height, width)
        last = averaged.maps if averaged else self._decoded(list(found.values())[-1], size, downscale)
        scales = {name: colour_scale(self.tasks[name], None, map) for name, map in last.items()}
        return Analysis(path, options, image, reduced, downscale, found, averaged, scales)

    def _decoded(self, logits: dict[str, Tensor], size: tuple[int, int], k: int) -> dict[str, Tensor]:
        """Decode logits of the photo, of which the network saw squares of k x k pixels as one."""
        seen = -(-size[0] // k)
        return {
            name: decode(self.tasks[name], x, size, k * factor_of(x, seen))[0] for name, x in logits.items()
        }

    def maps(self, analysis: Analysis, stage: int) -> dict[str, Tensor]:
        """Return task -> decoded map of the shown photo at a stage, as `Predictor` returns it."""
        if analysis.averaged is not None and stage == len(analysis.stages):
            return analysis.averaged.maps
        size = (analysis.image.shape[1], analysis.image.shape[2])
        return self._decoded(list(analysis.stages.values())[stage], size, analysis.downscale)

    def pictures(self, analysis: Analysis, stage: int, overlay: float) -> dict[str, np.ndarray]:
        """Return task -> coloured map, uint8 [H, W, 3].

        Args:
            overlay: share of the uncertainty's colours, 0 to 1; without several noise samples there are none.
        """
        painted = {}
        for name, map in self.maps(analysis, stage).items():
            picture = self.tasks[name].picture(map, analysis.scales[name])
            if overlay and analysis.averaged is not None:
                unsure, _ = heat(analysis.averaged.uncertainty[name].numpy())
                blended = Image.blend(Image.fromarray(picture), Image.fromarray(unsure), overlay)
                picture = np.asarray(blended)
            painted[name] = picture
        return painted

    def values(self, analysis: Analysis, stage: int, x: int, y: int) -> list[tuple[str, str, str]]:
        """Return (name, value, uncertainty) of the pixel in column x and row y of the shown photo: its place
        in the whole photo, then every task. Empty for a pixel outside."""
        if not (x < analysis.image.shape[2] and y < analysis.image.shape[1]):
            return []
        rows = [("pixel", f"x {x * analysis.reduced}, y {y * analysis.reduced}", "")]
        for name, map in self.maps(analysis, stage).items():
            task, unsure = self.tasks[name], ""
            if analysis.averaged is not None:
                amount = float(analysis.averaged.uncertainty[name][y, x])
                unsure = f"{number(amount, 3)} {task.uncertainty_unit}"
            rows.append((name, value_text(task, map[..., y, x]), unsure))
        return rows

    def save(self, analysis: Analysis, folder: Path) -> Path:
        """Write what `dmtl predict` writes for the whole photo, with the same options, into a zip file in a
        new folder in `folder`, and return its path.

        Raises:
            DataError: not enough memory.
        """
        options = analysis.options
        # the network sees the photo as small as it saw it for the page
        downscale = analysis.reduced * analysis.downscale if analysis.reduced > 1 else None
        with self._lock, TemporaryDirectory(dir=folder) as out:
            predictor = Predictor(
                self.model,
                steps=options.steps,
                sampler=options.sampler,
                samples=options.samples,
                downscale=downscale,
            )
            summary = predictor.predict_files([analysis.path], Path(out) / "maps")
            if not summary.ok:
                raise DataError(summary.failures[0].reason)
            name = Path(mkdtemp(dir=folder), f"{analysis.path.stem}-maps")
            return Path(make_archive(str(name), "zip", Path(out) / "maps"))


def value_text(task: Task, value: Tensor) -> str:
    """Return the prediction for one pixel in words: a class, or numbers with their unit."""
    if not value.is_floating_point() and task.label_names:
        return task.label_names[int(value)]
    numbers = ", ".join(number(float(v), 3) for v in value.flatten())
    return f"{numbers} {task.unit}".rstrip()
