"""Metrics of a model on a data set, by one process or by several.

Every batch is summed on its own, and floating-point sums are added in the order of the batches: they come out
in the same bits however many processes share the batches. Counts do in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from dmtl.data.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.metrics import ErrorAuroc, Metric
from dmtl.tasks import Task
from dmtl.train.distributed import World, gathered

Metrics = dict[str, dict[str, float]]
_AUROC = "uncertainty_auroc"
_Key = tuple[str, str]  # a task, and what of it is scored: "final", "initial" or _AUROC
_State = dict[str, Tensor]


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
    world: World | None = None,
) -> Metrics:
    """{task: {metric: value}} over all batches, on the model's device.

    Args:
        model: a model, whose mode is restored; or a `dmtl.infer.Engine`. Of an engine that averages several
            draws, tasks also get "uncertainty_auroc" (`dmtl.metrics.ErrorAuroc`).
        tasks: default every task that model and batches share.
        steps: denoising steps, default as trained; an engine also takes "auto".
        seed: of the chain's noise; an image's noise depends on its place in the data set, not on the batches.
        initial: also score the initial predictions, as "initial/<task>" (of one draw).
        on_batch: called with the number of images done, in this process.
        world: the processes that share the batches. Each of them calls `evaluate` with an equal model and the
            same batches, takes every `size`-th, and returns the figures of one process, to the bit.
    """
    names = None if tasks is None else list(tasks)
    world = World() if world is None else world
    sums = _Sums(world)
    with for_inference(model):
        for batch in _share(batches, world):
            batch = batch.to(model.device)
            chosen = [t for t in (model.tasks if names is None else names) if t in batch.labels]
            options = dict(steps=steps, noise=CounterNoise(seed, batch.index))
            sums.add(_scores(model, batch, chosen, options, initial))
            on_batch(len(batch.ids))
    metrics: Metrics = {}
    for (name, kind), meter in sums.meters(model.tasks).items():
        if kind == _AUROC:
            metrics[name][_AUROC] = meter.compute()
        else:
            metrics[name if kind == "final" else f"initial/{name}"] = meter.compute()
    return metrics


def _share(batches: Iterable[Batch], world: World) -> Iterator[Batch]:
    """Every `world.size`-th batch from number `world.rank` on; a loader reads no others."""
    if world.size > 1 and hasattr(batches, "shard"):
        return iter(batches.shard(world.rank, world.size))
    return islice(batches, world.rank, None, world.size)


def _scores(
    model: Any, batch: Batch, names: list[str], options: dict, initial: bool
) -> dict[_Key, Metric | ErrorAuroc]:
    """The meters of one batch."""
    meters: dict[_Key, Metric | ErrorAuroc] = {}

    def score(name: str, kind: str, map: Tensor) -> None:
        meter = meters[name, kind] = _meter(model.tasks, (name, kind))
        meter.update(map, batch.labels[name])

    if initial:
        out = model(batch.image, names, **options)
        for name in names:
            decode = model.tasks[name].decode
            score(name, "final", decode(out.final[name].float()))
            score(name, "initial", decode(out.initial[name].float()))
        return meters
    out = model.maps(batch.image, names, **options)
    for name in names:
        task, map, label = model.tasks[name], out.maps[name], batch.labels[name]
        score(name, "final", map)
        if name in out.uncertainty:
            auroc = meters[name, _AUROC] = _meter(model.tasks, (name, _AUROC))
            auroc.update(out.uncertainty[name], task.error(map, label), task.valid(label)[:, 0])
    return meters


def _meter(tasks: Mapping[str, Task], key: _Key) -> Metric | ErrorAuroc:
    name, kind = key
    return ErrorAuroc(tasks[name].graded) if kind == _AUROC else tasks[name].new_metric()


class _Sums:
    """What this process's batches add up to. Counts are added as they come; floating-point sums (a few
    numbers) and the pixels of ErrorAuroc are kept apart by batch until all processes' are at hand."""

    def __init__(self, world: World):
        self.world = world
        self.counts: dict[_Key, _State] = {}
        self.parts: list[dict[_Key, _State]] = []

    def add(self, meters: Mapping[_Key, Metric | ErrorAuroc]) -> None:
        """The next batch."""
        part: dict[_Key, _State] = {}
        for key, meter in meters.items():
            part[key] = state = meter.state()
            counts = {name: state.pop(name) for name in list(state) if not state[name].is_floating_point()}
            _add(self.counts, key, counts)
        self.parts.append(part)

    def meters(self, tasks: Mapping[str, Task]) -> dict[_Key, Metric | ErrorAuroc]:
        """Meters that hold all batches of all processes, in the order in which a batch first had them."""
        here = _on_cpu(self.counts), [_on_cpu(part) for part in self.parts]
        everywhere = gathered(here) if self.world.size > 1 else [here]
        counts: dict[_Key, _State] = {}
        for theirs, _ in everywhere:
            for key, state in theirs.items():
                _add(counts, key, state)
        meters: dict[_Key, Metric | ErrorAuroc] = {}
        for row in zip_longest(*(parts for _, parts in everywhere), fillvalue={}):  # batch by batch
            for part in row:
                for key, state in part.items():
                    if key not in meters:
                        meters[key] = _meter(tasks, key)
                    else:
                        counts[key] = {name: torch.zeros_like(value) for name, value in counts[key].items()}
                    meters[key].merge({**counts[key], **state})
        return meters


def _add(sums: dict[_Key, _State], key: _Key, state: _State) -> None:
    here = sums.get(key)
    sums[key] = state if here is None else {name: here[name] + value for name, value in state.items()}


def _on_cpu(states: Mapping[_Key, _State]) -> dict[_Key, _State]:
    return {key: {name: value.cpu() for name, value in state.items()} for key, state in states.items()}


@contextmanager
def for_inference(model: Any):
    """A module in eval mode, the mode of each of its parts restored afterwards; anything else as it is."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    if modes:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def primary_metrics(metrics: Metrics, tasks: Mapping[str, Task]) -> dict[str, tuple[str, float, bool]]:
    """task -> (name of the metric that enters Delta_MTL, its value, whether higher is better)."""
    return {
        name: (task.primary, metrics[name][task.primary], task.higher_is_better)
        for name, task in tasks.items()
        if name in metrics
    }
