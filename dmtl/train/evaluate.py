"""Metrics of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dmtl.data.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.tasks import Task

Metrics = dict[str, dict[str, float]]


@torch.inference_mode()
def evaluate(
    model: DiffusionMTL | MultiTaskBaseline,
    batches: Iterable[Batch],
    *,
    tasks: Iterable[str] | None = None,
    steps: int | None = None,
    seed: int = 0,
    initial: bool = False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """{task: {metric: value}} over all batches, on the model's device; the model's mode is restored.

    Args:
        tasks: default every task that model and batches share.
        steps: denoising steps, default as trained.
        seed: of the chain's noise; an image's noise depends on its place in the data set, not on the batches.
        initial: also score the initial predictions, as "initial/<task>".
        on_batch: called with the number of images done.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    meters = {}
    try:
        for batch in batches:
            batch = batch.to(device)
            names = [t for t in (model.tasks if tasks is None else tasks) if t in batch.labels]
            noise = CounterNoise(seed, batch.index)
            if initial:
                out = model(batch.image, names, steps=steps, noise=noise)
                for name, task in ((name, model.tasks[name]) for name in names):
                    label = batch.labels[name]
                    _update(meters, name, task, task.decode(out.final[name].float()), label)
                    _update(meters, f"initial/{name}", task, task.decode(out.initial[name].float()), label)
            else:
                for name, map in model.maps(batch.image, names, steps=steps, noise=noise).maps.items():
                    _update(meters, name, model.tasks[name], map, batch.labels[name])
            on_batch(len(batch.ids))
    finally:
        model.train(training)
    return {name: meter.compute() for name, meter in meters.items()}


def _update(meters: dict, key: str, task: Task, map: Tensor, label: Tensor) -> None:
    if key not in meters:
        meters[key] = task.new_metric()
    meters[key].update(map, label)


def primary_metrics(metrics: Metrics, tasks: Mapping[str, Task]) -> dict[str, tuple[str, float, bool]]:
    """task -> (name of the metric that enters Delta_MTL, its value, whether higher is better)."""
    return {
        name: (task.primary, metrics[name][task.primary], task.higher_is_better)
        for name, task in tasks.items()
        if name in metrics
    }
