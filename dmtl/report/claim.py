"""The table of a claim: finished runs of its methods as rows, as Markdown, and as JSON.

Legend: a method's *outcome* for a seed is one run, or the runs of all tasks put together.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtl import __version__
from dmtl.report.compare import Gain, gain
from dmtl.report.data import mean_of, spread_of, value_of
from dmtl.report.methods import Method
from dmtl.report.runs import INITIAL, Run, read_run
from dmtl.report.table_remarks import delta_text
from dmtl.runtime.files import write_text
from dmtl.train.claim import Claim
from dmtl.train.jobs import finished

NONE = "-"


@dataclass(frozen=True)
class Results:
    """What is finished of a claim.

    Attributes:
        runs: method -> seed -> its runs, one, or one for each task.
        outcomes: method -> those of every seed put together.
        deltas: method -> Delta_MTL against the baseline, where both have runs.
        gains: method -> Delta_MTL of every seed against its own initial maps, for methods that have some.
    """

    claim: Claim
    runs: dict[str, dict[int, list[Run]]]
    outcomes: dict[str, Method]
    deltas: dict[str, Gain]
    gains: dict[str, list[float]]


def results_of(claim: Claim, out: str | os.PathLike, seeds: Iterable[int]) -> Results:
    """Read the finished runs below `out`; DataError if one is damaged."""
    seeds = list(seeds)
    runs: dict[str, dict[int, list[Run]]] = {}
    for name, method in claim.methods.items():
        for seed in seeds:
            folders = list(method.folders(out, seed).values())
            if all(map(finished, folders)):
                runs.setdefault(name, {})[seed] = [read_run(folder) for folder in folders]
    outcomes = {n: Method(n, {}, [_together(own) for own in by.values()]) for n, by in runs.items()}
    base = outcomes.get(claim.baseline)
    others = [name for name in outcomes if base is not None and name != claim.baseline]
    deltas = {name: gain(outcomes[name], base) for name in others}
    gains = {}
    for name, method in outcomes.items():
        if claim.methods[name].config.model.diffusion != "none":
            gains[name] = gain(method, _initial(method)).each
    return Results(claim, runs, outcomes, deltas, gains)


def _together(runs: Sequence[Run]) -> Run:
    """The runs of several tasks as one; its steps are those of each, its seconds the sum."""
    first = runs[0]
    if len(runs) == 1:
        return first
    metrics, primary, tasks = ({}, {}, {})
    for run in runs:
        metrics, primary, tasks = metrics | run.metrics, primary | run.primary, tasks | run.tasks
    seconds = sum(run.seconds for run in runs)
    return dataclasses.replace(first, metrics=metrics, primary=primary, tasks=tasks, seconds=seconds)


def _initial(method: Method) -> Method:
    """The same runs with the metrics of their initial maps."""
    runs = []
    for run in method.runs:
        metrics = {task: run.metrics.get(INITIAL + task, {}) for task in run.primary}
        runs.append(dataclasses.replace(run, metrics=metrics))
    return Method(f"{method.name}, initial maps", {}, runs)


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the columns' names and a row for each method; below one with diffusion its initial maps."""
    outcomes = results.outcomes
    runs = [run for method in outcomes.values() for run in method.runs]
    primary = {task: about for run in runs for task, about in run.primary.items()}
    names = [f"{task}, {metric} {'↑' if up else '↓'}" for task, (metric, _, up) in primary.items()]
    head = ["method", *names, "Delta_MTL, %", "each seed", "gain over initial maps, %"]
    head += ["seeds", "steps", "s per step"]
    rows = []
    for name, method in outcomes.items():
        label = results.claim.methods[name].label
        delta = results.deltas.get(name)
        each = ", ".join(f"{value:+.2f}" for value in delta.each) if delta else NONE
        gains = results.gains.get(name, [])
        steps = sorted({run.step for run in method.runs})
        steps = " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1])))
        pace = [_seconds_per_step(runs) for runs in results.runs[name].values()]
        row = [label, *_metrics(method, primary), _delta(delta), each, _signed(gains)]
        rows.append([*row, ", ".join(map(str, method.seeds)), steps, f"{mean_of(value_of(pace)):.3g}"])
        if gains:
            initial = _initial(method)
            base = outcomes.get(results.claim.baseline)
            behind = gain(initial, base) if base is not None else None
            row = [f"{label}: its initial maps", *_metrics(initial, primary), _delta(behind)]
            rows.append([*row, *[""] * (len(head) - len(row))])
    return head, rows


def _metrics(method: Method, primary: Mapping[str, tuple]) -> list[str]:
    cells = []
    for task, (metric, *_) in primary.items():
        found = [run.metrics.get(task, {}).get(metric) for run in method.runs]
        cells.append(NONE if None in found else _figure([float(x) for x in found]))
    return cells


def _figure(values: Sequence[float]) -> str:
    """Mean ± standard deviation with the same number of decimals, or the one value there is."""
    value = value_of(values)
    mean, spread = mean_of(value), spread_of(value)
    decimals = len(f"{mean:#.4g}".partition(".")[2]) if 1e-4 < abs(mean) < 1e4 else 0
    return f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _signed(values: Sequence[float]) -> str:
    return delta_text(value_of(values)) if values else NONE


def _delta(delta: Gain | None) -> str:
    if delta is None or not delta.each:
        return NONE
    return _signed(delta.each) + ("" if delta.paired else " (not paired)")


def _seconds_per_step(runs: Sequence[Run]) -> float:
    return sum(run.seconds for run in runs) / sum(run.step for run in runs)


def write_markdown(path: str | os.PathLike, results: Results) -> None:
    """Write the table as Markdown."""
    head, rows = table(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    write_text(path, text + "\n")


def write_json(path: str | os.PathLike, results: Results) -> None:
    """Write every run's metrics, the configuration of every method, and Delta_MTL of every seed."""
    claim = results.claim
    methods = {}
    for name, method in claim.methods.items():
        config = dataclasses.asdict(method.config)
        for key in ("out", "device"):
            config.pop(key)
        config["optim"].pop("seed")  # of each run
        methods[name] = {"label": method.label, "like": method.like, "time_of": method.time_of}
        methods[name] |= {"tasks": method.tasks, "config": config}
        if delta := results.deltas.get(name):
            methods[name]["delta"] = {"each": delta.each, "seeds": delta.seeds, "paired": delta.paired}
        if name in results.gains:
            methods[name]["gain_over_initial"] = results.gains[name]
    runs = [
        {
            "seed": seed,
            "method": name,
            **({} if claim.methods[name].tasks is None else {"task": task}),
            "steps": run.step,
            "seconds": run.seconds,
            "seconds_per_step": run.seconds / run.step,
            "metrics": run.metrics,
        }
        for name, by_seed in results.runs.items()
        for seed, several in by_seed.items()
        for task, run in zip(claim.methods[name].tasks or [None], several, strict=True)
    ]
    whole = {"dmtl": __version__, "baseline": claim.baseline, "methods": methods, "runs": runs}
    write_text(Path(path), json.dumps(whole, indent=2) + "\n")
