"""The tables of `dmtl eval`: figures and what they mean, classes, steps, the comparison with a baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from dmtl.errors import ConfigError
from dmtl.tasks import Task

Metrics = Mapping[str, Mapping[str, float]]
Primary = Mapping[str, tuple[str, float, bool]]  # task -> name, value, whether higher is better


def notes(tasks: Mapping[str, Task], boundaries: object | None) -> dict[str, dict[str, str]]:
    """task -> metric -> what it is, where its name does not say it."""
    from dmtl.evaluation.evaluate import Boundaries

    found = {}
    for name, task in tasks.items():
        found[name] = dict(task.new_metric().notes)
        if boundaries is not None and Boundaries.concern(task):
            found[name] |= boundaries.metric(task.ignore).notes
    return found


def class_table(name: str, metrics: Mapping[str, float]) -> Table:
    """Intersection over union of every class of a task."""
    table = Table(f"{name} class")
    table.add_column("IoU %", justify="right")
    for metric, value in metrics.items():
        if metric.startswith("IoU/"):
            table.add_row(Text(metric.removeprefix("IoU/")), f"{value:.2f}")
    return table


def steps_table(title: str, rows: list[dict], primary: Primary) -> Table:
    """Time and every task's main metric for each number of steps; Delta against the first row."""
    from dmtl.metrics.delta import delta_mtl, judged

    table = Table(title=Text(title), title_justify="left")
    heads = (f"{t} {m} {'↑' if up else '↓'}" for t, (m, _, up) in primary.items())
    for column in ("steps", "ms/image", *heads, "Delta %"):
        table.add_column(column, justify="right")
    tasks = judged(primary)
    for row in rows:
        steps = str(row["steps"] or "as trained")
        steps = f"auto ({row['steps_taken']:.1f})" if row["steps"] == "auto" else steps
        values = [f"{row['metrics'][t.name][t.primary]:.4g}" for t in tasks]
        delta = f"{delta_mtl(row['metrics'], rows[0]['metrics'], tasks):+.2f}" if row is not rows[0] else ""
        table.add_row(steps, f"{row['ms_per_image']:.1f}", *values, delta)
    return table


def read_baseline(paths: list[str]) -> Metrics:
    """Metrics by task of stored runs (RUN/eval.json, else RUN/metrics.json, or such a file): of several
    single-task runs together.

    Raises ConfigError where there are none, and for a task that two of them have.
    """
    from dmtl.report.table_runs import EVAL
    from dmtl.train.best import read_reference

    reference: dict[str, Mapping[str, float]] = {}
    for path in paths:
        scored = Path(path) / EVAL
        for task, figures in read_reference(scored if scored.is_file() else path, "--baseline").items():
            if task in reference and not task.startswith("initial/"):
                raise ConfigError(f"--baseline: {path} has {task}, as one before it has; expected it once")
            reference[task] = figures
    return reference


def check_baseline(reference: Metrics, wanted: Mapping[str, str]) -> None:
    """ConfigError unless the baseline has these figures, task -> metric; told before hours of scoring."""
    for task, metric in wanted.items():
        if not math.isfinite(reference.get(task, {}).get(metric, math.nan)):
            raise ConfigError(
                f"--baseline has no {metric} of {task}, expected runs that `dmtl eval --json RUN/eval.json` "
                "scored by the same protocol"
            )


def against(metrics: Metrics, primary: Primary, reference: Metrics) -> dict[str, object]:
    """{"delta_mtl": percent, "baseline": {task: [metric, value, gain in percent]}}.

    Raises ConfigError where a figure is not a number, or the baseline's is 0.
    """
    from dmtl.metrics.delta import delta_mtl, judged

    tasks = judged(primary)
    try:
        gains = {task.name: delta_mtl(metrics, reference, [task]) for task in tasks}
    except ValueError as error:
        raise ConfigError(f"--baseline: {error}") from None
    compared = {t.name: [t.primary, reference[t.name][t.primary], gains[t.name]] for t in tasks}
    return {"delta_mtl": delta_mtl(metrics, reference, tasks), "baseline": compared}


def baseline_table(primary: Primary, found: Mapping) -> Table:
    """Every task's main figure beside the baseline's, and Delta_MTL."""
    title = f"Delta_MTL against the baseline: {found['delta_mtl']:+.2f} %"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("task")
    for column in ("metric", "value", "baseline", "gain %"):
        table.add_column(column, justify="right")
    for task, (metric, base, gain) in found["baseline"].items():
        _, value, up = primary[task]
        table.add_row(task, f"{metric} {'↑' if up else '↓'}", f"{value:.4g}", f"{base:.4g}", f"{gain:+.2f}")
    return table


def figures_file(rows: list[dict], primary: Primary, protocol: Mapping, compared: Mapping) -> str:
    """The text of `--json`."""
    found = {"metrics": rows[0]["metrics"], "primary": primary} if len(rows) == 1 else {"steps": rows}
    return json.dumps({**found, "protocol": protocol, **compared}, indent=2) + "\n"
