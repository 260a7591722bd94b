"""Compute metrics of a model on a data set, in one process or several.

Each batch is summed separately, and floating-point sums are added in the order of the batches. So the result
has the same bits for any number of processes. Integer counts can be added in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from dmtl.data.base import source_of
from dmtl.data.loading.loader import Batch
from dmtl.diffusion import CounterNoise
from dmtl.errors import ConfigError
from dmtl.metrics import ErrorAuroc, Metric
from dmtl.runtime.distributed import World, gather
from dmtl.tasks import Task

Metrics = dict[str, dict[str, float]]
Meter = Metric | ErrorAuroc
_AUROC = "uncertainty_auroc"
# (task, what is scored: "final", "initial", "boundaries" or _AUROC, source of the images). The source is ""
# if the data set has no sources, or if there are no labels.
_Key = tuple[str, str, str]
_Rows = slice | list[int]  # rows of a batch
_State = dict[str, Tensor]
_Maps = dict[str, Tensor]


@dataclass(frozen=True)
class Boundaries:
    """How thin tasks (`Task.thin`) are scored as boundaries, on predictions without their padding.

    Attributes:
        metric: function (ignored label value) -> metric of probabilities [B, H, W] and labels [B, 1, H, W].
        truth: function (index in the data set, task) -> true boundaries, bool [H, W]; None: they are where
            the label is 1.
        ids: ids of the images to score; None: all that have a label of the task.
    """

    metric: Callable[[float], Metric]
    truth: Callable[[int, str], Tensor | None]
    ids: Collection[str] | None = None

    def update(
        self, meter: Metric, batch: Batch, task: str, map_BHW: Tensor, rows: _Rows = slice(None)
    ) -> None:
        """Add the predictions of a task for the images of a batch, or only for `rows`, to a metric.

        Images of equal size are added together.
        """
        pairs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        index_B = batch.index.tolist()
        for row in range(len(batch))[rows] if isinstance(rows, slice) else rows:
            index = index_B[row]
            if batch.present[task][row] and (self.ids is None or batch.ids[row] in self.ids):
                window = batch.unpadded(row)
                truth = self.truth(index, task)
                label = batch.labels[task][row][:, *window].cpu() if truth is None else truth[None].byte()
                pairs.setdefault(batch.valid_size[row], []).append((map_BHW[row][window], label))
        for equal in pairs.values():
            maps, labels = (torch.stack(parts).cpu() for parts in zip(*equal, strict=True))
            meter.update(maps, labels)


@torch.inference_mode()
def score(
    model: Any,
    batches: Iterable[Batch],
    *,
    tasks: Iterable[str] | Mapping[str, Task] | None = None,
    steps: int | str | None = None,
    seed: int = 0,
    initial: bool = False,
    boundaries: Boundaries | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
    on_maps: Callable[[Batch, Mapping[str, Tensor]], None] = lambda batch, maps: None,
    on_sources: Callable[[dict[str, Metrics]], object] = lambda found: None,
    world: World | None = None,
) -> Metrics:
    """Score a model over all batches, on the model's device.

    Args:
        model: a model, whose mode is restored afterwards; a `dmtl.Engine`, or another object with its
            `tasks`, `device` and `maps`; or an object with `tasks`, `device` and `maps_of(batch, names)` ->
            decoded maps, such as `dmtl.evaluation.saved_maps.SavedMaps`. If an engine averages several noise
            samples, tasks also get "uncertainty_auroc" (`dmtl.metrics.ErrorAuroc`).
        batches: the batches to score.
        tasks: names of the tasks to score; None: all that model and batches share. If this is a mapping, its
            values are the tasks of the data set, which then define the ignored label values, the order of
            classes (matched by name) and the metrics.
        steps: number of denoising steps; None: as trained. An engine also accepts "auto".
        seed: seed of the noise. The noise of an image depends on its index in the data set, not on the
            batches.
        initial: also score the initial predictions (of one noise sample), as "initial/<task>".
        boundaries: also score the final predictions of thin tasks in this way.
        on_batch: called after each batch of this process with the number of images scored.
        on_maps: called with each batch of this process and its final decoded maps.
        on_sources: called at the end, if the data set joins several sources, with {source: metrics}; the
            metrics are those of the source's images, for the tasks of which it has labels.
        world: the processes that share the batches. Each process calls `score` with an equal model and the
            same batches, scores every `size`-th batch, and returns the metrics of all, in the same bits as a
            single process. None: only this process.

    Returns:
        {task: {metric: value}}.

    Raises:
        ConfigError: a task means something else to the model than to the data set.
    """
    names = None if tasks is None else list(tasks)
    world = World() if world is None else world
    labelled = {**model.tasks, **(tasks if isinstance(tasks, Mapping) else {})}
    scores = _Scores(model, labelled, initial, boundaries, on_maps)
    sums = _Sums(world)
    with for_inference(model):
        for batch in _share(batches, world):
            batch = batch.to(model.device)
            chosen = [t for t in (model.tasks if names is None else names) if t in batch.labels]
            sums.add(scores(batch, chosen, steps, seed))
            on_batch(len(batch.ids))
    meters = sums.meters(scores.meter)
    sources = dict.fromkeys(source for _, _, source in meters if source)
    if not sources:
        return _metrics(meters)
    every: dict[_Key, Meter] = {}
    for (name, kind, _), meter in meters.items():
        key = (name, kind, "")
        every.setdefault(key, scores.meter(key)).merge(meter.state())
    on_sources({s: _metrics({key: m for key, m in meters.items() if key[2] == s}) for s in sources})
    return _metrics(every)


def _metrics(meters: Mapping[_Key, Meter]) -> Metrics:
    """Compute the metrics of every task from meters, which are all of one source."""
    metrics: Metrics = {}
    for (name, kind, _), meter in meters.items():
        if isinstance(meter, ErrorAuroc):
            metrics[name][_AUROC] = meter.compute()
        elif kind == "boundaries":
            metrics[name] |= meter.compute()
        else:
            metrics[name if kind == "final" else f"initial/{name}"] = meter.compute()
    return metrics


def _share(batches: Iterable[Batch], world: World) -> Iterator[Batch]:
    """Return every `world.size`-th batch from number `world.rank` on; a `Loader` does not read the others."""
    if world.size > 1 and hasattr(batches, "shard"):
        return iter(batches.shard(world.rank, world.size))
    return islice(batches, world.rank, None, world.size)


@dataclass(frozen=True)
class _Scores:
    """Compute the meters of batches.

    `tasks` are those of the labels; the model's own tasks decode its logits.
    """

    model: Any
    tasks: Mapping[str, Task]
    initial: bool
    boundaries: Boundaries | None
    on_maps: Callable[[Batch, Mapping[str, Tensor]], None]

    def meter(self, key: _Key) -> Meter:
        """Return an empty meter for a key."""
        task, kind = self.tasks[key[0]], key[1]
        if kind == _AUROC:
            return ErrorAuroc(task.graded)
        if kind == "boundaries":
            assert self.boundaries is not None  # otherwise there is no such key
            return self.boundaries.metric(task.ignore)
        return task.new_metric()

    def __call__(
        self, batch: Batch, names: list[str], steps: int | str | None, seed: int
    ) -> dict[_Key, Meter]:
        """Return the meters of one batch."""
        initial: _Maps
        uncertainty: _Maps
        if hasattr(self.model, "maps_of"):
            maps, initial, uncertainty = self.model.maps_of(batch, names), {}, {}
        else:
            maps, initial, uncertainty = self._predicted(batch, names, steps, seed)
        convert = {name: converter(name, self.model.tasks[name], self.tasks[name]) for name in names}
        maps, initial = ({name: convert[name](map) for name, map in m.items()} for m in (maps, initial))
        self.on_maps(batch, maps)
        meters: dict[_Key, Meter] = {}

        def meter(name: str, kind: str, source: str) -> Any:
            key = (name, kind, source)
            return meters.setdefault(key, self.meter(key))

        for (source, rows), name in itertools.product(_sources(batch), names):
            task, label, map = self.tasks[name], batch.labels[name][rows], maps[name][rows]
            source = source if batch.present[name][rows].any() else ""
            meter(name, "final", source).update(map, label)
            if name in initial:
                meter(name, "initial", source).update(initial[name][rows], label)
            if name in uncertainty:
                error, valid = task.error(map, label), task.valid(label)[:, 0]
                meter(name, _AUROC, source).update(uncertainty[name][rows], error, valid)
            if self.boundaries is not None and task.thin:
                self.boundaries.update(meter(name, "boundaries", source), batch, name, maps[name], rows)
        return meters

    def _predicted(
        self, batch: Batch, names: list[str], steps: int | str | None, seed: int
    ) -> tuple[_Maps, _Maps, _Maps]:
        """Return final maps, initial maps and uncertainties.

        Images of equal size are predicted together, without the padding to the largest of the batch. So the
        maps of an image do not depend on other images.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for row, size in enumerate(batch.sizes):
            groups.setdefault(size, []).append(row)
        if len(groups) == 1:  # nothing was padded, so no copies are needed
            return self._maps(batch.image, names, dict(steps=steps, noise=CounterNoise(seed, batch.index)))
        found: tuple[_Maps, _Maps, _Maps] = ({}, {}, {})
        for (height, width), rows in groups.items():
            image, noise = batch.image[rows, :, :height, :width], CounterNoise(seed, batch.index[rows])
            parts = self._maps(image, names, dict(steps=steps, noise=noise))
            for whole, part in zip(found, parts, strict=True):
                for name, map in part.items():
                    if name not in whole:
                        whole[name] = map.new_zeros(len(batch), *map.shape[1:-2], *batch.image.shape[-2:])
                    whole[name][rows, ..., :height, :width] = map
        return found

    def _maps(self, image: Tensor, names: list[str], options: dict[str, Any]) -> tuple[_Maps, _Maps, _Maps]:
        if not self.initial:
            out = self.model.maps(image, names, **options)
            return out.maps, {}, out.uncertainty
        out = self.model(image, names, **options)
        final, initial = (
            {name: self.model.tasks[name].decode(logits[name].float()) for name in names}
            for logits in (out.final, out.initial)
        )
        return final, initial, {}


def _sources(batch: Batch) -> list[tuple[str, _Rows]]:
    """Return the sources of a batch's images, each with the rows of its images."""
    if not batch.sources:
        return [("", slice(None))]
    rows: dict[str, list[int]] = {}
    for row, id in enumerate(batch.ids):
        rows.setdefault(source_of(id), []).append(row)
    return [(source, slice(None) if len(rows) == 1 else own) for source, own in rows.items()]


class _Sums:
    """Add up the meters of this process's batches.

    Counts are added immediately. Floating-point sums (a few numbers) and the pixels of ErrorAuroc are kept
    for each batch until those of all processes have been gathered.
    """

    def __init__(self, world: World):
        self.world = world
        self.counts: dict[_Key, _State] = {}
        self.parts: list[dict[_Key, _State]] = []

    def add(self, meters: Mapping[_Key, Meter]) -> None:
        """Add the meters of the next batch."""
        part: dict[_Key, _State] = {}
        for key, meter in meters.items():
            part[key] = state = meter.state()
            counts = {name: state.pop(name) for name in list(state) if not state[name].is_floating_point()}
            _add(self.counts, key, counts)
        self.parts.append(part)

    def meters(self, new: Callable[[_Key], Meter]) -> dict[_Key, Meter]:
        """Return meters, created by `new`, with the batches of all processes.

        Keys are in the order in which they first occurred in a batch.
        """
        here = _on_cpu(self.counts), [_on_cpu(part) for part in self.parts]
        everywhere = gather(here) if self.world.size > 1 else [here]
        counts: dict[_Key, _State] = {}
        for theirs, _ in everywhere:
            for key, state in theirs.items():
                _add(counts, key, state)
        meters: dict[_Key, Meter] = {}
        for row in zip_longest(*(parts for _, parts in everywhere), fillvalue={}):  # batch by batch
            for part in row:
                for key, state in part.items():
                    if key not in meters:
                        meters[key] = new(key)
                    else:
                        counts[key] = {name: torch.zeros_like(value) for name, value in counts[key].items()}
                    meters[key].merge({**counts[key], **state})
        return meters


def _add(sums: dict[_Key, _State], key: _Key, state: _State) -> None:
    here = sums.get(key)
    sums[key] = state if here is None else {name: here[name] + value for name, value in state.items()}


def _on_cpu(states: Mapping[_Key, _State]) -> dict[_Key, _State]:
    return {key: {name: value.cpu() for name, value in state.items()} for key, state in states.items()}


def converter(
    name: str,
    ours: Task,
    theirs: Task,
    source: object = "the model",
    data: object = "the data set",
) -> Callable[[Tensor], Tensor]:
    """Return a function that converts predictions of `ours` to those of `theirs` (`Task.to_terms_of`).

    Raises:
        ConfigError: the tasks mean different things; the message names the task, `source` and `data`.
    """
    try:
        return ours.to_terms_of(theirs)
    except ConfigError as error:
        raise ConfigError(f"task {name!r} of {source} (there) and of {data} (here): {error}") from None


@contextmanager
def for_inference(model: Any) -> Iterator[None]:
    """In this context, put a module into eval mode; afterwards restore the mode of each part.

    Objects that are not modules stay unchanged.
    """
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    if modes:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def primary_metrics(metrics: Metrics, tasks: Mapping[str, Task]) -> dict[str, tuple[str, float, bool]]:
    """Return task -> (name of the metric that enters Delta_MTL, value, whether higher is better).

    If a task was scored as boundaries, this metric is odsF.
    """
    primary = {}
    for name, task in tasks.items():
        if name in metrics:
            metric = next((m for m in metrics[name] if m.startswith("odsF_")), task.primary)
            primary[name] = (metric, metrics[name][metric], task.higher_is_better)
    return primary
