"""Pictures of what models predict.

For each task, side by side: label, initial prediction, every denoising step, final prediction; also where a
model is uncertain and where it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data import LabelledImages, LabelMatrix
from dmtl.engine.engine import Engine
from dmtl.models import DiffusionMTL, MultiTaskBaseline, Prediction
from dmtl.report.html.content import Cell, SamplePictures
from dmtl.report.html.uncertainty import uncertainty_cells
from dmtl.tasks import Task
from dmtl.tasks.base import Range
from dmtl.train.pictures import colour_scale, predicted

HIDDEN = "not labelled in training"


@torch.inference_mode()
def sample_pictures(
    models: Mapping[str, DiffusionMTL | MultiTaskBaseline],
    dataset: LabelledImages,
    indices: Sequence[int],
    *,
    labels: LabelMatrix | None = None,
    steps: int | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    note: str = "",
) -> list[SamplePictures]:
    """Return pictures of the images at `indices` by every model.

    Args:
        models: name -> model. A model with a denoising chain shows its initial prediction, its steps and its
            final prediction; any other only its prediction.
        labels: what training saw of this split; labels hidden from training are shown and marked. None for a
            split that was not trained on.
        seed: seed of the noise, which depends on an image's index in the data set as in evaluation.
        engine: averages noise samples of one model: adds their uncertainty and the error of their mean.
        note: shown with every image.
    """
    tasks = {n: t for model in models.values() for n, t in model.tasks.items() if n in dataset.tasks}
    result = []
    for index in indices:
        sample = dataset.read(index)
        options: dict[str, Any] = {"image_CHW": sample.image, "index": index, "steps": steps, "seed": seed}
        predictions = {
            name: predicted(model.eval(), model.device, **options, trace=True)
            for name, model in models.items()
        }
        averaged = None if engine is None else predicted(engine.maps, engine.device, **options)
        chains = sum(bool(p.trace) for p in predictions.values())
        rows = {}
        for task in tasks.values():
            label = sample.labels.get(task.name)
            finals = [p.final[task.name] for p in predictions.values() if task.name in p.final]
            scale = colour_scale(task, label, task.decode(finals[-1])[0])
            cells = [_label_cell(task, label, scale, labels, sample.id)]
            for name, prediction in predictions.items():
                if task.name in prediction.final:
                    cells += _cells(task, name, prediction, scale, chains)
            if engine is not None and averaged is not None and task.name in averaged.uncertainty:
                cells += uncertainty_cells(task, averaged, label, engine.samples)
            rows[task.name] = cells
        image = sample.image.permute(1, 2, 0).numpy()
        result.append(SamplePictures(sample.id, np.ascontiguousarray(image), rows, note))
    return result


def _label_cell(task: Task, label: Tensor | None, scale: Range, labels: LabelMatrix | None, id: str) -> Cell:
    if label is None:
        return Cell("label", None)
    hidden = labels is not None and task.name not in labels.tasks_of(id)
    return Cell("label", task.label_picture(label, scale), HIDDEN if hidden else "")


def _cells(task: Task, name: str, prediction: Prediction, scale: Range, chains: int) -> list[Cell]:
    def paint(caption: str, logits: Tensor) -> Cell:
        return Cell(caption, task.picture(task.decode(logits.float())[0].cpu(), scale))

    prefix = "" if chains == 1 else f"{name}: "
    shown = stages(prediction, task.name)
    if len(shown) == 1:
        return [paint(name, prediction.final[task.name])]
    return [paint(prefix + caption, logits) for caption, logits in shown]


def stages(prediction: Prediction, task: str) -> list[tuple[str, Tensor]]:
    """Return captions and logits of a task in the order of the chain; of a model without a chain only the
    final ones."""
    trace = prediction.trace.get(task, [])
    if not trace:
        return [("final map", prediction.final[task])]
    # The last step of the chain is the final prediction: show it once.
    steps = [(f"step {k}", logits) for k, logits in enumerate(trace[:-1], 1)]
    final = (f"step {len(trace)}, final", prediction.final[task])
    return [("initial map", prediction.initial[task]), *steps, final]
