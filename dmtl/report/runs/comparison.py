"""Compare runs: metrics of every method over its seeds, and Delta_MTL against a baseline.

    comparison = compare(["runs/a0", "runs/a1", "runs/b0", "runs/b1"])
    comparison.methods["Feature"].name             # "model.diffusion=feature"
    comparison.deltas["Feature"].value             # mean and sample standard deviation over pairs of runs

A method's name lists the settings in which it differs and may be long. So methods also have short labels:
their names in the paper ("MTL", "Feature") if these are distinct, otherwise letters.

Delta_MTL is paired by seed: each result is compared with the baseline's result of the same seed. If a method
and the baseline have no seed in common, each of its seeds is compared with the baseline's mean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmtl.errors import ConfigError, DataError, did_you_mean
from dmtl.metrics.delta import Judged, delta_mtl
from dmtl.report.runs.methods import Method, kind_of, methods_of
from dmtl.report.runs.run import LOWER_IS_BETTER, Metrics, Run, find_runs, read_all, unit_of
from dmtl.report.runs.values import Value, best_of, mean_of, value_of

# Settings that must be equal for the metrics of two runs to be comparable.
SAME = ("root", "sources", "tasks", "size", "resize", "train_count", "val_count", "labels", "label_seed")

BySeed = Mapping[int, Metrics]


@dataclass(frozen=True)
class Delta:
    """Delta_MTL in percent.

    Attributes:
        each: one value for each seed.
        seeds: the seeds.
        tasks: the tasks over which it is the mean.
        paired: whether each value is relative to the reference's result of the same seed.
        why: why there is no value; "" if there is one.
    """

    each: Sequence[float] = ()
    seeds: Sequence[int] = ()
    tasks: Sequence[str] = ()
    paired: bool = False
    why: str = ""

    @property
    def value(self) -> Value:
        return value_of(self.each) if self.each else math.nan


@dataclass(frozen=True)
class MetricRow:
    """One metric of one task, for every method.

    `primary` says whether the metric enters Delta_MTL. `unit` is "%", "m", "deg" or the like, or "".
    """

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    values: Mapping[str, Value]
    primary: bool = True

    @property
    def best(self) -> list[str]:
        """Return the methods with the best mean; [] if there is nothing to compare."""
        return best_of(self.values, self.higher_is_better)

    def gain(self, method: str, reference: str) -> float:
        """Return the improvement over `reference` in percent, positive for better; NaN if unknown."""
        ours, theirs = (mean_of(self.values.get(name, math.nan)) for name in (method, reference))
        if theirs == 0 or not math.isfinite(ours - theirs):
            return math.nan
        return (100.0 if self.higher_is_better else -100.0) * (ours - theirs) / theirs


@dataclass
class Comparison:
    """Methods, and their Delta_MTL relative to the first one, the baseline.

    Attributes:
        methods: the methods by label, the baseline first.
        deltas: Delta_MTL of all other methods by label.
        warning: why the methods are not comparable; "" if they are.
        remarks: sentences about the comparison.
    """

    methods: dict[str, Method]
    deltas: dict[str, Delta]
    warning: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Method:
        return next(iter(self.methods.values()))

    def with_initial(self) -> dict[str, Method]:
        """Return the methods by label; each is followed by its initial predictions if it has any."""
        found = {}
        for label, method in self.methods.items():
            found[label] = method
            if (initial := method.initial()) is not None:
                found[f"{label}, initial map"] = initial
        return found

    def reference(self, seed: int) -> Metrics:
        """Return the reference metrics for a run with this seed."""
        return self.baseline.by_seed.get(seed) or _mean(self.baseline.by_seed, self.baseline.judged)

    def basis(self, label: str) -> str:
        """Describe how the Delta_MTL of a method was computed."""
        if (delta := self.deltas.get(label)) is None:
            return "baseline" if self.deltas else ""
        seeds = ", ".join(map(str, delta.seeds))
        if delta.paired:
            return f"paired by seed: {seeds}"
        return f"not paired: {seeds}, relative to {next(iter(self.methods))}'s mean" if delta.each else ""

    def summary(self) -> list[dict[str, str]]:
        """Return text for each method: label, name, basis of Delta_MTL, seeds, steps, mean training time."""
        rows = []
        for label, method in self.methods.items():
            unfinished = sum(not run.finished for run in method.runs)
            rows.append(
                {
                    "label": label,
                    "name": method.name,
                    "basis": self.basis(label),
                    "seeds": ", ".join(map(str, method.seeds)),
                    "steps": method.steps() + (f" ({unfinished} unfinished)" if unfinished else ""),
                    "time": method.time() or "n/a",
                }
            )
        return rows


def compare(
    paths: Sequence[str | os.PathLike],
    baseline: Sequence[str | os.PathLike] = (),
    labels: Sequence[str] = (),
) -> Comparison:
    """Read runs and compare them.

    Args:
        paths: folders of runs, or folders that contain runs, such as that of a claim.
        baseline: folders of runs, folders that contain runs, or the name of a method; empty: the first path.
            If it contains several methods, the first one without diffusion is used, or else the first one.
        labels: labels of the methods, the baseline first; empty: chosen automatically.

    Raises:
        DataError: a folder is not a run, or a file is damaged.
        ConfigError: there are no paths, the baseline is unknown, or there is not one label per method.
    """
    if not paths:
        raise ConfigError("compare: paths must name at least one run, got none")
    name = str(baseline[0]) if len(baseline) == 1 and not Path(baseline[0]).is_dir() else None
    first = [run for path in (paths[:1] if name or not baseline else baseline) for run in find_runs(path)]
    runs, remarks = read_all([*first, *(run for path in paths for run in find_runs(path))])
    methods, more = methods_of(runs)
    base = _named(methods, name) if name else _baseline(methods, first)
    methods.sort(key=lambda method: method is not base)
    if not labels:
        several = len({task for run in runs for task in run.primary}) > 1
        labels = [kind_of(method.runs[0], several) for method in methods]
        if len(set(labels)) < len(labels):
            labels = [chr(ord("A") + i) if i < 26 else f"M{i + 1}" for i in range(len(methods))]
    elif len(labels) != len(methods):
        names = "; ".join(method.name for method in methods)
        raise ConfigError(f"compare: labels must have one label per method, got {len(labels)} for {names}")
    result = comparison_of(dict(zip(labels, methods, strict=True)))
    result.remarks = [*remarks, *result.remarks, *more]
    return result


def comparison_of(methods: Mapping[str, Method]) -> Comparison:
    """Compare methods, given by label, with the first one."""
    (first, base), *others = methods.items()
    deltas = {label: delta_between(own.by_seed, base.by_seed, own.judged) for label, own in others}
    remarks = [
        f"No Delta_MTL of {', '.join(label for label in deltas if deltas[label].why == why)}: {why}."
        for why in dict.fromkeys(delta.why for delta in deltas.values() if delta.why)
    ]
    plain = base.runs[0].setting("model", "diffusion") == "none"
    chains = [x for x, own in others if own.runs[0].setting("model", "diffusion", "none") != "none"]
    if plain and chains:
        remarks.append(
            f"The training loss of {', '.join(chains)} covers initial and final predictions, that of {first} "
            "one prediction per task: compare the metrics, not the losses."
        )
    return Comparison(dict(methods), deltas, _not_comparable(list(methods.values())), remarks)


def delta_between(ours: BySeed, theirs: BySeed, judged: Sequence[Judged], partial: bool = False) -> Delta:
    """Return Delta_MTL of a method relative to another one.

    Args:
        ours: metrics of the method by seed.
        theirs: metrics of the other method by seed.
        judged: the metrics to average over.
        partial: leave out metrics that are missing or not finite on either side. False: if there is such a
            metric, the result has no value.
    """
    mine, reference = _mean(ours, judged), _mean(theirs, judged)
    shared, why = [], ""
    for each in judged:
        try:
            delta_mtl(mine, reference, [each])
            shared.append(each)
        except ValueError as error:
            why = why or str(error).removeprefix("delta_mtl: ")
    if not shared or (why and not partial):
        return Delta(why=why or "no metric in common")
    tasks = [each.name for each in shared]
    whole = {seed: metrics for seed, metrics in ours.items() if _has(metrics, shared)}
    pairs = [seed for seed in whole if seed in theirs and _has(theirs[seed], shared, divisor=True)]
    if pairs:
        return Delta([delta_mtl(whole[s], theirs[s], shared) for s in pairs], pairs, tasks, True)
    if whole:
        return Delta([delta_mtl(own, reference, shared) for own in whole.values()], list(whole), tasks)
    return Delta([delta_mtl(mine, reference, shared)], list(ours), tasks)


def metric_rows(methods: Mapping[str, Method]) -> list[MetricRow]:
    """Return the metrics of each task, the main one first, without the IoU of single classes.

    A method that lacks a metric in one of its seeds has no value in that row.
    """
    known: dict[str, Run] = {}
    for run in (run for method in methods.values() for run in method.runs):
        for task in run.primary:
            known.setdefault(task, run)
    rows = []
    for task, first in known.items():
        primary, _, higher = first.primary[task]
        others = [m for m in first.metrics.get(task, {}) if m != primary and not m.startswith("IoU/")]
        for metric in [primary, *others]:
            found = {label: method.value(task, metric) for label, method in methods.items()}
            values = {label: value for label, value in found.items() if value is not None}
            unit = unit_of(metric, first.tasks.get(task))
            better = higher if metric == primary else metric not in LOWER_IS_BETTER
            rows.append(MetricRow(task, metric, unit, better, values, metric == primary))
    return rows


def source_rows(method: Method) -> list[MetricRow]:
    """Return the main metric of each task, with a value for each source of the data and for "all" of them.

    A source has no value if it has no labels of the task in one of the runs.
    """
    rows = []
    for task, metric, higher in method.judged:
        runs = [run for run in method.runs if task in run.primary]
        values = {"all": value_of([run.metrics[task][metric] for run in runs])}
        for source in runs[0].sources:
            found = [run.sources.get(source, {}).get(task, {}).get(metric) for run in runs]
            known = [value for value in found if value is not None]
            if len(known) == len(runs):
                values[source] = value_of(known)
        rows.append(MetricRow(task, metric, unit_of(metric, runs[0].tasks.get(task)), higher, values))
    return rows


def _mean(by_seed: BySeed, judged: Iterable[Judged]) -> Metrics:
    """Average every judged metric over the seeds that have it."""
    result = {}
    for task, metric, _ in judged:
        found = [m[task][metric] for m in by_seed.values() if metric in m.get(task, {})]
        if found:
            result[task] = {metric: mean_of(value_of(found))}
    return result


def _has(metrics: Metrics, judged: Iterable[Judged], divisor: bool = False) -> bool:
    found = [metrics.get(task, {}).get(metric) for task, metric, _ in judged]
    return None not in found and (all(found) or not divisor)


def _not_comparable(methods: Sequence[Method]) -> str:
    """Return in one line how methods differ in data, size, labels or tasks; "" if they do not."""
    found = []
    for key in SAME:
        values: dict[str, Path] = {}
        for method in methods:
            if (name := f"data.{key}") in method.settings:
                values.setdefault(str(method.settings[name]), method.runs[0].path)
        if len(values) > 1:
            each = ", ".join(f"{value} in {path}" for value, path in values.items())
            found.append(f"data.{key} is {each}")
    first, *others = (run for method in methods for run in method.runs)
    main = {task: metric for task, (metric, *_) in first.primary.items()}
    for other in others:
        theirs = {task: metric for task, (metric, *_) in other.primary.items()}
        if theirs != main:
            what = "tasks" if theirs.keys() != main.keys() else "main metrics"
            found.append(f"{other.path} has other {what} than {first.path}")
            break
    labelled = [(run.path, run.labels) for run in (first, *others) if run.labels is not None]
    if apart := next((path for path, labels in labelled if not labelled[0][1].agrees(labels)), None):
        found.append(f"{apart} used other training labels than {labelled[0][0]}")
    return f"Not comparable: {'; '.join(found)}." if found else ""


def _named(methods: Sequence[Method], wanted: str) -> Method:
    names = [method.name for method in methods]
    if wanted in names:
        return methods[names.index(wanted)]
    hint = did_you_mean(wanted, names, " (", ")")
    raise ConfigError(f"baseline must be a run or one of {'; '.join(names)}, got {wanted!r}{hint}")


def _baseline(methods: Sequence[Method], folders: Sequence[Path]) -> Method:
    paths = {Path(os.path.normpath(path)) for path in folders}
    own = [method for method in methods if any(run.path in paths for run in method.runs)]
    if not own:
        raise DataError(f"{folders[0]}: has no run with an evaluation, expected one as the baseline")
    plain = [method for method in own if method.settings.get("model.diffusion") == "none"]
    return plain[0] if len(own) > 1 and plain else own[0]
