"""Show whether a model is uncertain where it is wrong, by comparing several noise samples with the labels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dmtl.data import LabelledImages, LabelMatrix, make_loader
from dmtl.data.loading.order import evenly
from dmtl.engine.engine import Engine
from dmtl.evaluation.scoring import score
from dmtl.models import DiffusionMTL, Maps, MultiTaskBaseline
from dmtl.report.html.content import Cell, Uncertainty, UncertaintyRow
from dmtl.tasks import Task
from dmtl.tasks.palette import EMBER, apply_scale, heat
from dmtl.text import number

# Score at most this number of images and of pixels, but at least FEWEST images.
IMAGES = 48
PIXELS = 4_000_000
FEWEST = 8
BATCH = 4


def averaging(model: DiffusionMTL | MultiTaskBaseline, samples: int) -> Engine | None:
    """Return an engine that averages `samples` noise samples; None if the model has no noise to average."""
    if samples < 2 or not isinstance(model, DiffusionMTL):
        return None
    return Engine(model, samples=samples)


def error_auroc(
    engine: Engine, dataset: LabelledImages, method: str, steps: int | None = None
) -> Uncertainty | None:
    """Return for every task the AUROC with which uncertainty predicts errors.

    It is computed over at most 48 images, fewer if they are large, evenly spread over the data set.

    Returns:
        The results, or None if the data set has no label of the model's tasks.

    Raises:
        DataError: a file is damaged.
    """
    exist = dataset.available()
    names = [task for task in engine.tasks if task in exist.tasks and exist.column(task).any()]
    if not names:
        return None
    height, width = dataset.read(0, []).size
    chosen = evenly(len(dataset), min(IMAGES, max(FEWEST, PIXELS // (height * width))))
    shown = np.zeros((len(dataset), len(names)), bool)
    shown[chosen] = exist.subset(dataset.ids, names).matrix[chosen]
    labels = LabelMatrix(dataset.ids, names, shown)
    loader = make_loader(dataset, labels, batch_size=BATCH, shuffle=False, only_labelled=True)
    metrics = score(engine, loader, tasks=names, steps=steps)
    rows = []
    for task in (engine.tasks[name] for name in names):
        measure = f"{task.words.uncertainty}, {task.uncertainty_unit}"
        auroc = metrics[task.name]["uncertainty_auroc"]
        rows.append(UncertaintyRow(task.name, auroc, measure, task.words.mistake))
    return Uncertainty(method, engine.samples, int(shown.any(1).sum()), rows)


def uncertainty_cells(task: Task, averaged: Maps, label_KHW: Tensor | None, draws: int) -> list[Cell]:
    """Draw where noise samples disagree and, if there is a label, where their mean is wrong.

    `averaged` are the maps of one image, [1, ...].
    """
    unsure_HW = averaged.uncertainty[task.name][0].cpu().numpy()
    cells = [_heat(f"uncertainty ({draws} samples)", unsure_HW, task.uncertainty_unit)]
    if label_KHW is not None:
        error_HW = task.error(averaged.maps[task.name].cpu(), label_KHW[None])[0]
        known_HW = torch.where(task.valid(label_KHW)[0], error_HW, math.nan).numpy()
        wrong = Cell("error", apply_scale(EMBER, known_HW), scale="bright: wrong")
        cells.append(_heat("error", known_HW, task.error_unit) if task.graded else wrong)
    return cells


def _heat(caption: str, value_HW: np.ndarray, unit: str) -> Cell:
    picture, top = heat(value_HW)
    return Cell(caption, picture, scale=f"0 to {number(top, 2)} {unit}")
