"""Pictures of predictions: validation images for TensorBoard, and helpers shared with the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data import LabelledImages, Sample
from dmtl.data.loading.order import evenly
from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise
from dmtl.evaluation.scoring import for_inference
from dmtl.tasks import Task
from dmtl.tasks.palette import GREY
from dmtl.tasks.sheet import sheet


def validation_pictures(
    model: Any, data: LabelledImages, count: int, *, tasks: list[str] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw sheets of some images of a split.

    A sheet shows the image and, for every task, the label, the initial map (if the model has a chain) and the
    final map side by side.

    Args:
        model: a model, whose mode is restored afterwards.
        data: the split.
        count: number of images, evenly spread over the split.
        tasks: names of the tasks; None: all that model and data share.
        seed: seed of the noise; as in evaluation, it also depends on the image's index in the data set.

    Returns:
        "validation/<image id>" -> uint8 [H, W, 3].
    """
    names = [n for n in model.tasks if n in data.tasks and (tasks is None or n in tasks)]
    sheets: dict[str, np.ndarray] = {}
    if not names:
        return sheets
    with for_inference(model), torch.inference_mode():
        for index in evenly(len(data), count):
            sample = data.read(index, names)
            prediction = predicted(model, model.device, sample.image, index, seed=seed, tasks=names)
            kinds = {"initial": prediction.initial, "final": prediction.final}
            if model.config.diffusion == "none":
                del kinds["initial"]  # it is the same as the final map
            sheets[f"validation/{sample.id}"] = _sheet(sample, {n: model.tasks[n] for n in names}, kinds)
    return sheets


def _sheet(
    sample: Sample, tasks: Mapping[str, Task], kinds: Mapping[str, Mapping[str, Tensor]]
) -> np.ndarray:
    """Draw one row per task with label and maps; the first row starts with the image.

    `kinds` maps a caption to logits by task.
    """
    image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
    unknown = np.full_like(image, GREY)
    pictures: list[tuple[str, np.ndarray | None]] = []
    for name, task in tasks.items():
        label = sample.labels.get(name)
        maps = {kind: task.decode(logits[name].float())[0].cpu() for kind, logits in kinds.items()}
        scale = colour_scale(task, label, maps["final"])
        pictures.append((f"image {sample.id}", None if pictures else image))
        pictures.append((f"{name}: label", unknown if label is None else task.label_picture(label, scale)))
        pictures += [(f"{name}: {kind}", task.picture(map, scale)) for kind, map in maps.items()]
    return sheet(pictures, 2 + len(kinds))


def predicted(
    model: Any, device: torch.device, image_CHW: Tensor, index: int, *, seed: int, **options: Any
) -> Any:
    """Predict one image, uint8 [3, H, W], with a model or an engine's `maps`.

    The noise is that of evaluation for an image with this `index` in the data set.
    """
    noise = CounterNoise(seed, torch.tensor([index], device=device))
    return model(normalise(image_CHW.to(device))[None], noise=noise, **options)


def colour_scale(task: Task, label_KHW: Tensor | None, map_HW: Tensor) -> tuple[float, float] | None:
    """Return one colour scale for all pictures of a task and an image, so that they can be compared.

    It is that of the label or, without a label, that of the decoded map. None: the colours are fixed.
    """
    return task.value_range(map_HW[None] if label_KHW is None else label_KHW)
