"""Build the paper's tables from runs, one per benchmark and label setting, next to published results.

    [table] = tables(["runs/stl", "runs/feature-0", "runs/feature-1"])      # runs, or folders of runs
    row = next(row for row in table.rows if row.method == "Feature" and not row.published)
    row.values["semseg"], row.delta.value       # over seeds: mean and sample standard deviation

The benchmark of a run follows from its data set: tasks, numbers of classes and names of images. The setting
follows from its labels, and the row from its configuration. Runs that differ only in their seed form one row.
Single-task runs (one for each task and seed) form the row STL. Results come from RUN/eval.json (`dmtl eval
--json`) if it exists, otherwise from RUN/metrics.json.

Delta_MTL is relative to STL, or to MTL if there is no STL, over the tasks for which both rows have results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dmtl.errors import ConfigError, did_you_mean
from dmtl.report.paper.published import (
    BENCHMARKS,
    EXACT_SAL,
    SETTINGS,
    Benchmark,
    Column,
    Published,
    published,
    published_delta,
)
from dmtl.report.paper.remarks import remarks_on
from dmtl.report.paper.table import PaperTable, Row
from dmtl.report.runs.comparison import Delta, delta_between
from dmtl.report.runs.methods import KINDS, Method, kind_of, names_of, settings_of
from dmtl.report.runs.run import LOWER_IS_BETTER, PERCENT, Run, find_runs, read_all, with_evaluation
from dmtl.report.runs.values import value_of

OWN = ("data.tasks", "optim.task_weights")  # settings in which single-task runs of one row differ
ODSF = "odsF_seism"
LABELS = {"mean": "mErr", "abs_err": "absErr", "rmse": "RMSE", ODSF: "odsF"}


def published_tables(benchmark: str | None = None) -> list[PaperTable]:
    """Return only the published results, of all benchmarks or of one.

    Raises:
        ConfigError: the benchmark is unknown.
    """
    wanted = [_benchmark(benchmark)] if benchmark else BENCHMARKS.values()
    keys = [(known, setting) for known in wanted for setting in SETTINGS if published(known.name, setting)]
    return [_table(known, known.title, setting, known.columns, []) for known, setting in keys]


def tables(
    paths: Sequence[str | os.PathLike],
    baseline: Sequence[str | os.PathLike] = (),
    benchmark: str | None = None,
    exact: bool = False,
) -> list[PaperTable]:
    """Read runs and build tables from them.

    Args:
        paths: folders of runs, or folders that contain runs. Unfinished runs count with their last
            evaluation.
        baseline: reference runs for Delta_MTL, such as stored single-task runs; they also get rows.
        benchmark: treat all runs as runs of this benchmark; None: recognise it by their tasks.
        exact: use the exact maxF of saliency and not the paper's variant.

    Raises:
        DataError: a folder is not a run, or a file is damaged.
        ConfigError: the benchmark is unknown, or no other run has the baseline's data and labels.
    """
    forced = _benchmark(benchmark) if benchmark else None
    theirs = [run for path in baseline for run in find_runs(path)]
    runs, remarks = read_all([*(run for path in paths for run in find_runs(path)), *theirs])
    named = {Path(os.path.normpath(path)) for path in theirs}
    result = []
    for (name, setting), own in _sorted([with_evaluation(run) for run in runs], forced).items():
        known = BENCHMARKS.get(name)
        columns = _columns(known, own, exact)
        title = known.title if known else name
        result.append(_table(known, title, setting, columns, _rows(own, columns), named))
    if named and not any(_holds(table.reference, named) and len(table.measured) > 1 for table in result):
        raise ConfigError(
            f"baseline must share data and labels with the other runs, got {', '.join(map(str, baseline))}"
        )
    result[0].remarks[:0] = remarks
    return result


def _sorted(runs: Sequence[Run], forced: Benchmark | None) -> dict[tuple[str, str], list[Run]]:
    """Group runs by (benchmark or data name, label setting), in the order of the paper."""
    by_root: dict[str, list[Run]] = {}
    for run in runs:
        root = str(run.setting("data", "root", "unknown data"))
        sources = run.setting("data", "sources") or [{"root": root}]
        by_root.setdefault("+".join(os.path.normpath(source["root"]) for source in sources), []).append(run)
    groups: dict[tuple[str, str], list[Run]] = {}
    for own in by_root.values():
        tasks = _tasks_of(own)
        id = next((id for run in own if run.labels is not None for id in run.labels.ids), "")
        known = forced or next((each for each in BENCHMARKS.values() if each.recognises(tasks, id)), None)
        for run in own:
            key = (known.name if known else run.data_name, _setting_of(run, own))
            groups.setdefault(key, []).append(run)
    order = sorted(groups, key=lambda key: (_place(key[0], BENCHMARKS), _place(key[1], SETTINGS)))
    return {key: groups[key] for key in order}


def _place(name: str, order: Iterable[str]) -> tuple[int, str]:
    """Return a sort key: names in this order, then unknown ones alphabetically."""
    order = list(order)
    return (order.index(name), "") if name in order else (len(order), name)


def _tasks_of(runs: Iterable[Run]) -> dict[str, int]:
    """Return all tasks of some runs, with their number of classes (1 if a task has none)."""
    found: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: -len(run.primary)):
        for task in run.primary:
            classes = getattr(run.tasks.get(task), "classes", None)
            if classes is None:
                classes = [metric for metric in run.metrics.get(task, {}) if metric.startswith("IoU/")]
            found[task] = max(found.get(task, 1), len(classes))
    return found


def _setting_of(run: Run, others: Iterable[Run]) -> str:
    """Return the label setting of a run.

    If the configuration does not say, it is inferred from the labels that the run and the `others` with the
    same label table used together (a single-task run uses one column).
    """
    asked = run.setting("data", "labels", "unknown labels")
    if asked in SETTINGS:
        return str(asked)
    alike = [other for other in others if other.setting("data", "labels") == asked]
    seen: dict[str, set[str]] = {}
    tasks: set[str] = set()
    for labels in (other.labels for other in alike if other.labels is not None):
        tasks.update(labels.tasks)
        for id in labels.ids:
            seen.setdefault(id, set()).update(labels.tasks_of(id))
    if len(tasks) < 2:
        return f"labels of {Path(str(asked)).name}"
    counts = {len(labels) for labels in seen.values()}
    if counts == {len(tasks)}:
        return "full"
    return "one-label" if counts <= {0, 1} else "random-labels"


def _rows(runs: Sequence[Run], columns: Sequence[Column]) -> list[Row]:
    """Return one row per method and configuration.

    Single-task runs share a row even if their configurations differ, unless a task occurs twice.
    """
    several = len(_tasks_of(runs)) > 1
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kind, settings = kind_of(run, several), settings_of(run)
        for option in OWN if kind == "STL" else ():
            settings.pop(option, None)
        key = (kind, json.dumps(settings, sort_keys=True))
        if kind == "STL" and key not in groups:
            task = set(run.primary)
            apart = [k for k, own in groups.items() if k[0] == "STL" and not task & _tasks_of(own).keys()]
            key = apart[0] if apart else key
        groups.setdefault(key, []).append(run)
    rows = []
    for kind in KINDS:
        different = [json.loads(key[1]) for key in groups if key[0] == kind]
        details = names_of(different)[0] if len(different) > 1 else [""]
        for detail, key in zip(details, (key for key in groups if key[0] == kind), strict=False):
            method = Method(kind, groups[key])
            found = {column.task: method.values(column.task, column.metric) for column in columns}
            row = Row(kind, {task: value_of(each) for task, each in found.items() if each}, detail, method)
            method.name = row.name
            rows.append(row)
    return rows


def _table(
    benchmark: Benchmark | None,
    title: str,
    setting: str,
    columns: Sequence[Column],
    rows: list[Row],
    named: Collection[Path] = (),
) -> PaperTable:
    """Build a table of measured rows and the published ones."""
    reference = next((row for row in rows if _holds(row, named)), None)
    if reference is None:
        reference = next((row for kind in ("STL", "MTL") for row in rows if row.method == kind), None)
    judged = [column.judged for column in columns]
    theirs = reference.measured.by_seed if reference and reference.measured else None
    for row in rows:
        if theirs is not None and row.measured and row is not reference:
            delta = delta_between(row.measured.by_seed, theirs, judged, partial=True)
            row.delta = delta if delta.each else None
    printed = published(benchmark.name, setting) if benchmark else []
    rows = [*rows, *(_printed(row, columns) for row in printed)]
    table = PaperTable(title, setting, benchmark, columns, sorted(rows, key=_order), reference)
    table.remarks = remarks_on(table)
    return table


def _printed(printed: Published, columns: Sequence[Column]) -> Row:
    """Return a published row. A column with another metric stays empty, and then there is no Delta_MTL."""
    own = [column.task for column in columns if column in BENCHMARKS[printed.benchmark].columns]
    delta = published_delta(printed) if len(own) == len(columns) else None
    results = {task: value for task, value in printed.results.items() if task in own}
    return Row(
        printed.method, results, printed=printed, delta=None if delta is None else Delta([delta], tasks=own)
    )


def _order(row: Row) -> tuple:
    apart = bool(row.printed and row.printed.network)
    return apart, _place(row.method.partition(",")[0], KINDS), not row.published


def _columns(known: Benchmark | None, runs: Sequence[Run], exact: bool) -> list[Column]:
    """Return a benchmark's columns; for other data sets each task's main metric, odsF if one run has it."""
    if known:
        return [EXACT_SAL if exact and column.task == "sal" else column for column in known.columns]
    columns = []
    for task in _tasks_of(runs):
        found = [run.primary[task][0] for run in runs if task in run.primary]
        metric = ODSF if ODSF in found else found[0]
        percent = metric.startswith(PERCENT) or metric in ("mean", "median")
        label = LABELS.get(metric, metric)
        columns.append(Column(task, metric, label, metric not in LOWER_IS_BETTER, 2 if percent else 4))
    return columns


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        hint = did_you_mean(name, BENCHMARKS, " (", ")")
        raise ConfigError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}{hint}")
    return BENCHMARKS[name]


def _holds(row: Row | None, paths: Collection[Path]) -> bool:
    return row is not None and any(run.path in paths for run in row.runs)
