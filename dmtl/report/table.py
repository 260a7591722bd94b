"""The paper's tables from runs: one for each benchmark and label setting, beside the published figures.

    [table] = tables(["runs/stl", "runs/feature-0", "runs/feature-1"])      # runs, or folders of runs
    row = next(row for row in table.rows if row.method == "Feature" and not row.published)
    row.values["semseg"], row.delta.value       # over seeds: mean and sample standard deviation

A run's benchmark follows from the tasks, class counts and names of images of its data set, its setting from
its labels, its row from its configuration: single-task runs (one for each task and seed) are one row, STL,
and so are runs that differ in their seed alone. Figures are those of RUN/eval.json (`dmtl eval --json`) where
it is there, else of RUN/metrics.json.

Delta_MTL is taken against STL, without it against MTL: seed by seed where both have one, else of each seed
against the reference's mean; over the tasks that both rows have figures of.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dmtl.errors import ConfigError, DataError, nearest
from dmtl.report.data import Value, mean_of, value_of
from dmtl.report.methods import Settings, find_runs, names_of, read_all, settings_of
from dmtl.report.published_figures import (
    BENCHMARKS,
    EXACT_SAL,
    SETTINGS,
    Benchmark,
    Column,
    Published,
    delta_over,
    published,
    published_delta,
)
from dmtl.report.runs import LOWER_IS_BETTER, PERCENT
from dmtl.report.table_remarks import remarks_on
from dmtl.report.table_runs import METHODS, Scored, method_of, read_scored, recognised, setting_of, tasks_of

OWN = ("data.tasks", "optim.task_weights")  # in which single-task runs of one row differ
ODSF = "odsF_seism"
LABELS = {"mean": "mErr", "abs_err": "absErr", "rmse": "RMSE", ODSF: "odsF"}


@dataclass(frozen=True)
class Delta:
    """Delta_MTL in percent: one figure a seed (`paired` with the reference's of that seed, or not), over
    `tasks`."""

    each: Sequence[float]
    tasks: Sequence[str]
    seeds: Sequence[int] = ()
    paired: bool = False

    @property
    def value(self) -> Value:
        return value_of(self.each)


@dataclass(eq=False)
class Row:
    """A row: `printed` is what was published, or None of a measured one, which has `runs` and its figures
    `by_seed`, {seed: {task: figure}}. `detail` tells measured rows of one method apart."""

    method: str
    detail: str = ""
    by_seed: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    runs: Sequence[Scored] = ()
    printed: Published | None = None
    delta: Delta | None = None

    @property
    def published(self) -> bool:
        return self.printed is not None

    @property
    def name(self) -> str:
        detail = self.printed.network if self.printed else self.detail
        return self.method + (f" ({detail})" if detail else "")

    @property
    def certain(self) -> bool:
        """Whether it may enter statements: measured, or verified and of the paper's network."""
        return self.printed is None or not (self.printed.doubt or self.printed.network)

    @cached_property
    def values(self) -> dict[str, Value]:
        """Figures by task, over seeds; a task without any is missing."""
        if self.printed is not None:
            return dict(self.printed.figures)
        tasks = dict.fromkeys(task for figures in self.by_seed.values() for task in figures)
        return {t: value_of([f[t] for f in self.by_seed.values() if t in f]) for t in tasks}

    @property
    def files(self) -> list[str]:
        """Names of the files that its figures are from."""
        return list(dict.fromkeys(scored.file for scored in self.runs))


@dataclass
class ResultTable:
    """A table. `rows` come in the order of the paper, of a method the published ones first; `benchmark` is
    None for a data set that is none of the paper's. Measured rows have Delta_MTL against `reference`."""

    title: str
    setting: str
    benchmark: Benchmark | None
    columns: Sequence[Column]
    rows: list[Row]
    reference: Row | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        return f"{self.title}, {SETTINGS.get(self.setting, self.setting)}"

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if not row.published]

    @property
    def sources(self) -> list[str]:
        """Where published rows are from, each once; a dagger before those that are not verified."""
        printed = [row.printed for row in self.rows if row.printed]
        return list(
            dict.fromkeys(row.source + (f" (†: {row.doubt})" if row.doubt else "") for row in printed)
        )

    def source_of(self, row: Row) -> int:
        """Index into `sources` of a published row."""
        start = row.printed.source
        return next(i for i, text in enumerate(self.sources) if text.split(" (†")[0] == start)

    def best(self, column: Column, among_published: bool) -> list[Row]:
        """Rows with the best figure among the measured or the published ones that are certain; none where
        there is nothing to compare."""
        rows = [row for row in self.rows if row.published == among_published and row.certain]
        found = [(mean_of(row.values[column.task]), row) for row in rows if column.task in row.values]
        found = [(value, row) for value, row in found if math.isfinite(value)]
        if len({value for value, _ in found}) < 2:
            return []
        top = (max if column.higher_is_better else min)(value for value, _ in found)
        return [row for value, row in found if value == top]


def published_tables(benchmark: str | None = None) -> list[ResultTable]:
    """The published figures alone, of all benchmarks or of one. ConfigError for an unknown one."""
    wanted = [_benchmark(benchmark)] if benchmark else BENCHMARKS.values()
    keys = [(known, setting) for known in wanted for setting in SETTINGS if published(known.name, setting)]
    return [_table(known, known.title, setting, known.columns, []) for known, setting in keys]


def tables(
    paths: Sequence[str | os.PathLike],
    reference: Sequence[str | os.PathLike] = (),
    benchmark: str | None = None,
    exact: bool = False,
) -> list[ResultTable]:
    """Reads runs and puts them into tables.

    Args:
        paths: run folders, or folders of runs. Unfinished runs count as of their last evaluation.
        reference: runs that Delta_MTL is taken against, stored single-task runs say; they are rows too.
        benchmark: all runs are of this one, whatever their tasks.
        exact: saliency by its exact maxF, not by the paper's variant.

    Errors: DataError names a folder that is no run, or a damaged file; ConfigError an unknown benchmark, or a
    reference that has no other run's data and labels.
    """
    forced = _benchmark(benchmark) if benchmark else None
    theirs = [run for path in reference for run in find_runs(path)]
    found, left_out = read_all([*(run for path in paths for run in find_runs(path)), *theirs])
    if not found:
        raise DataError(f"{paths[0]}: has no run with an evaluation, expected at least one")
    result = []
    named = {Path(os.path.normpath(path)) for path in theirs}
    for (name, setting), runs in _groups([read_scored(run) for run in found], forced).items():
        known = BENCHMARKS.get(name)
        columns = _columns(known, runs, exact)
        rows = _rows(runs, columns)
        result.append(_table(known, known.title if known else name, setting, columns, rows, named))
    if named and not any(_holds(table.reference, named) and len(table.measured) > 1 for table in result):
        raise ConfigError(
            f"--reference must share data and labels with RUN, got {', '.join(map(str, reference))}"
        )
    result[0].remarks[:0] = left_out
    return result


def delta_of_row(row: Row, reference: Row, columns: Sequence[Column]) -> Delta | None:
    """Delta_MTL of a measured row against another, over the columns that both have finite figures in; None
    where there is none."""
    means = {task: mean_of(value) for task, value in reference.values.items()}
    own = {task: mean_of(value) for task, value in row.values.items()}
    shared = [c for c in columns if math.isfinite(own.get(c.task, math.nan)) and _divides(means.get(c.task))]
    tasks = [column.task for column in shared]
    if not tasks:
        return None
    whole, theirs = (
        {seed: figures for seed, figures in each.by_seed.items() if figures.keys() >= set(tasks)}
        for each in (row, reference)
    )
    if paired := [seed for seed in whole if seed in theirs and all(theirs[seed][task] for task in tasks)]:
        return Delta([delta_over(shared, whole[s], theirs[s]) for s in paired], tasks, paired, True)
    if whole:
        return Delta([delta_over(shared, own, means) for own in whole.values()], tasks, list(whole))
    return Delta([delta_over(shared, own, means)], tasks, list(row.by_seed))


def _groups(runs: Sequence[Scored], forced: Benchmark | None) -> dict[tuple[str, str], list[Scored]]:
    """Runs by (benchmark or name of their data, label setting), in the order of the paper."""
    by_root: dict[str, list[Scored]] = {}
    for each in runs:
        root = os.path.normpath(str(each.run.setting("data", "root", "unknown data")))
        by_root.setdefault(root, []).append(each)
    groups: dict[tuple[str, str], list[Scored]] = {}
    for root, own in by_root.items():
        known = forced or recognised(own)
        for each in own:
            groups.setdefault(
                (known.name if known else Path(root).name, setting_of(each.run, own)), []
            ).append(each)
    first, second = list(BENCHMARKS), list(SETTINGS)
    return dict(
        sorted(groups.items(), key=lambda item: (_place(item[0][0], first), _place(item[0][1], second)))
    )


def _rows(runs: Sequence[Scored], columns: Sequence[Column]) -> list[Row]:
    """Runs of one method and configuration are a row; single-task runs also where configurations differ but
    no task comes in two of them."""
    several = len(tasks_of(runs)) > 1
    groups: dict[tuple[str, str], list[Scored]] = {}
    for each in runs:
        method, settings = method_of(each.run, several), settings_of(each.run)
        for key in OWN if method == "STL" else ():
            settings.pop(key, None)
        key = (method, json.dumps(settings, sort_keys=True))
        if method == "STL" and key not in groups:
            task = set(each.run.primary)
            apart = [k for k, own in groups.items() if k[0] == "STL" and not task & tasks_of(own).keys()]
            key = apart[0] if apart else key
        groups.setdefault(key, []).append(each)
    rows = []
    for method in METHODS:
        settings: list[Settings] = [json.loads(key) for name, key in groups if name == method]
        own = [runs for (name, _), runs in groups.items() if name == method]
        details = names_of(settings)[0] if len(own) > 1 else [""]
        rows += [_row(method, *pair, columns) for pair in zip(details, own, strict=False)]
    return rows


def _row(method: str, detail: str, runs: Sequence[Scored], columns: Sequence[Column]) -> Row:
    """Of several runs with the same seed (and task) the first counts."""
    by_seed: dict[int, dict[str, float]] = {}
    for scored in sorted(runs, key=lambda scored: scored.seed):
        figures = by_seed.setdefault(scored.seed, {})
        for column in columns:
            value = scored.metrics.get(column.task, {}).get(column.metric)
            if value is not None:
                figures.setdefault(column.task, value)
    return Row(method, detail, by_seed, runs)


def _table(
    benchmark: Benchmark | None,
    title: str,
    setting: str,
    columns: Sequence[Column],
    rows: list[Row],
    named: Collection[Path] = (),
) -> ResultTable:
    """The table of these measured rows, with the published ones among them."""
    reference = next((row for row in rows if _holds(row, named)), None)
    if reference is None:
        reference = next((row for method in ("STL", "MTL") for row in rows if row.method == method), None)
    for row in rows if reference else ():
        row.delta = None if row is reference else delta_of_row(row, reference, columns)
    rows = [
        *rows,
        *(_printed(row, columns) for row in (published(benchmark.name, setting) if benchmark else ())),
    ]
    table = ResultTable(title, setting, benchmark, columns, sorted(rows, key=_order), reference)
    table.remarks = remarks_on(table)
    return table


def _printed(printed: Published, columns: Sequence[Column]) -> Row:
    """A published row; nothing of it stands in a column of another metric, and then it has no Delta."""
    own = [column.task for column in columns if column in BENCHMARKS[printed.benchmark].columns]
    delta = published_delta(printed) if len(own) == len(columns) else None
    figures = {task: value for task, value in printed.figures.items() if task in own}
    shown = replace(printed, figures=figures)
    return Row(printed.method, printed=shown, delta=None if delta is None else Delta([delta], own))


def _order(row: Row) -> tuple:
    apart = bool(row.printed and row.printed.network)
    return apart, _place(row.method.partition(",")[0], METHODS), not row.published


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)


def _columns(known: Benchmark | None, runs: Sequence[Scored], exact: bool) -> list[Column]:
    """A benchmark's, or of any other data set each task's main metric; odsF where one run has it."""
    if known:
        return [EXACT_SAL if exact and column.task == "sal" else column for column in known.columns]
    columns = []
    for task in tasks_of(runs):
        found = [scored.primary[task][0] for scored in runs if task in scored.primary]
        metric = ODSF if ODSF in found else found[0] if found else next(iter(runs[0].metrics[task]))
        percent = metric.startswith(PERCENT) or metric in ("mean", "median")
        label = LABELS.get(metric, metric)
        columns.append(Column(task, metric, label, metric not in LOWER_IS_BETTER, 2 if percent else 4))
    return columns


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        near = nearest(name, BENCHMARKS)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ConfigError(f"--benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}{hint}")
    return BENCHMARKS[name]


def _holds(row: Row | None, paths: Collection[Path]) -> bool:
    return row is not None and any(scored.run.path in paths for scored in row.runs)


def _divides(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value != 0
