"""Draw the predictions of models.

For each task, pictures show side by side the label, the initial prediction, every denoising step and the
final prediction; also where a model is uncertain and where it is wrong.
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
    """Draw the predictions of every model for some images.

    Args:
        models: name -> model. For a model with a denoising chain, the initial prediction, the steps and the
            final prediction are shown; for other models only the prediction.
        dataset: the data set.
        indices: indices of the images.
        labels: the labels that training used in this split: other labels are shown, too, but marked. None:
            the split was not used for training.
        steps: number of denoising steps; None: as trained.
        seed: seed of the noise; as in evaluation, it also depends on the image's index in the data set.
        engine: averages noise samples of one model, to add pictures of the uncertainty and of the error of
            the mean; None: no such pictures.
        note: remark shown with every image.
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
    shown = prediction.stages(task.name)
    if len(shown) == 1:
        return [paint(name, prediction.final[task.name])]
    return [paint(prefix + caption, logits) for caption, logits in shown]
