"""Metrics of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dmtl.data.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.metrics import ErrorAuroc
from dmtl.tasks import Task

Metrics = dict[str, dict[str, float]]


@torch.inference_mode()
def evaluate(
    model: Any,
    batches: Iterable[Batch],
    *,
    tasks: Iterable[str] | None = None,
    steps: int | str | None = None,
    seed: int = 0,
    initial: bool = False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """{task: {metric: value}} over all batches, on the model's device.

    Args:
        model: a model, whose mode is restored; or a `dmtl.infer.Engine`. Of an engine that averages several
            draws, tasks also get "uncertainty_auroc" (`dmtl.metrics.ErrorAuroc`).
        tasks: default every task that model and batches share.
        steps: denoising steps, default as trained; an engine also takes "auto".
        seed: of the chain's noise; an image's noise depends on its place in the data set, not on the batches.
        initial: also score the initial predictions, as "initial/<task>" (of one draw).
        on_batch: called with the number of images done.
    """
    meters: dict = {}
    with _for_inference(model):
        for batch in batches:
            batch = batch.to(model.device)
            names = [t for t in (model.tasks if tasks is None else tasks) if t in batch.labels]
            options = dict(steps=steps, noise=CounterNoise(seed, batch.index))
            if initial:
                out = model(batch.image, names, **options)
                for name, task in ((name, model.tasks[name]) for name in names):
                    label = batch.labels[name]
                    _update(meters, name, task, task.decode(out.final[name].float()), label)
                    _update(meters, f"initial/{name}", task, task.decode(out.initial[name].float()), label)
            else:
                out = model.maps(batch.image, names, **options)
                for name in names:
                    task, map, label = model.tasks[name], out.maps[name], batch.labels[name]
                    _update(meters, name, task, map, label)
                    if name in out.uncertainty:
                        auroc = meters.setdefault((name, "uncertainty_auroc"), ErrorAuroc(task.graded))
                        auroc.update(out.uncertainty[name], task.error(map, label), task.valid(label)[:, 0])
            on_batch(len(batch.ids))
    metrics = {name: meter.compute() for name, meter in meters.items() if isinstance(name, str)}
    for (name, figure), meter in ((key, meter) for key, meter in meters.items() if isinstance(key, tuple)):
        metrics[name][figure] = meter.compute()
    return metrics


@contextmanager
def _for_inference(model: Any):
    """A module in eval mode, its own mode restored afterwards; anything else as it is."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


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
