"""Which table a run belongs to: its benchmark and its label setting."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dmtl.report.paper.published import BENCHMARKS, SETTINGS, Benchmark
from dmtl.report.runs.run import Run


def sort_runs(runs: Sequence[Run], forced: Benchmark | None) -> dict[tuple[str, str], list[Run]]:
    """Return runs by (benchmark or name of their data, label setting), in the order of the paper.

    Args:
        forced: the benchmark of all of them.
    """
    by_root: dict[str, list[Run]] = {}
    for run in runs:
        root = os.path.normpath(str(run.setting("data", "root", "unknown data")))
        by_root.setdefault(root, []).append(run)
    groups: dict[tuple[str, str], list[Run]] = {}
    for root, own in by_root.items():
        known = forced or _benchmark_of(own)
        for run in own:
            key = (known.name if known else Path(root).name, _setting_of(run, own))
            groups.setdefault(key, []).append(run)
    first, second = list(BENCHMARKS), list(SETTINGS)
    return dict(
        sorted(groups.items(), key=lambda item: (place(item[0][0], first), place(item[0][1], second)))
    )


def place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Return a key to sort by: names in this order, unknown ones by letter after them."""
    return (order.index(name), "") if name in order else (len(order), name)


def tasks_of(runs: Iterable[Run]) -> dict[str, int]:
    """Return all tasks of some runs, with their number of classes (1 if a task has none)."""
    found: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: -len(run.primary)):
        for task in run.primary:
            classes = getattr(run.tasks.get(task), "classes", None)
            if classes is None:
                classes = [metric for metric in run.metrics.get(task, {}) if metric.startswith("IoU/")]
            found[task] = max(found.get(task, 1), len(classes))
    return found


def _benchmark_of(runs: Sequence[Run]) -> Benchmark | None:
    """The benchmark whose tasks, class counts and names of images the runs of one data set have together."""
    tasks = tasks_of(runs)
    id = next((id for run in runs if run.labels is not None for id in run.labels.ids), "")
    return next((known for known in BENCHMARKS.values() if known.recognises(tasks, id)), None)


def _setting_of(run: Run, others: Iterable[Run]) -> str:
    """The label setting: what the configuration says, or counted from the labels that the run and the
    `others` with the same label table saw together (a single-task run sees one column)."""
    asked = run.setting("data", "labels", "unknown labels")
    if asked in SETTINGS:
        return str(asked)
    alike = [other for other in others if other.setting("data", "labels") == asked]
    seen: dict[str, set[str]] = {}
    tasks: set[str] = set()
    for labels in (other.labels for other in alike if other.labels is not None):
        tasks.update(labels.tasks)
        for id, row in zip(labels.ids, labels.matrix, strict=True):
            seen.setdefault(id, set()).update(t for t, on in zip(labels.tasks, row, strict=True) if on)
    if len(tasks) < 2:
        return f"labels of {Path(str(asked)).name}"
    counts = {len(labels) for labels in seen.values()}
    if counts == {len(tasks)}:
        return "full"
    return "one-label" if counts <= {0, 1} else "random-labels"
