"""The table of a claim: finished runs of its methods as rows of text, as Markdown, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtl import __version__
from dmtl.metrics.delta import Judged
from dmtl.report.runs.comparison import Delta, delta_between
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import read_run
from dmtl.report.runs.values import mean_of, text_of, value_of
from dmtl.runtime.files import write_text
from dmtl.text import number
from dmtl.train.claim import Claim
from dmtl.train.jobs import finished

NONE = "-"


@dataclass(frozen=True)
class Results:
    """What is finished of a claim.

    Attributes:
        methods: by name, with all runs; single-task runs of a seed count together.
        deltas: Delta_MTL against the baseline, if both have runs.
        gains: Delta_MTL of every seed against its own initial maps, of methods that have some.
    """

    claim: Claim
    methods: dict[str, Method]
    deltas: dict[str, Delta]
    gains: dict[str, Delta]


def results_of(claim: Claim, out: str | os.PathLike, seeds: Iterable[int]) -> Results:
    """Read the finished runs below `out`; DataError if one is damaged."""
    seeds, methods = list(seeds), {}
    for name, method in claim.methods.items():
        by_seed = [list(method.folders(out, seed).values()) for seed in seeds]
        runs = [read_run(path) for paths in by_seed if all(map(finished, paths)) for path in paths]
        if runs:
            methods[name] = Method(method.label, runs)
    base = methods.get(claim.baseline)
    deltas = {
        name: delta_between(own.by_seed, base.by_seed, own.judged)
        for name, own in methods.items()
        if base is not None and own is not base
    }
    gains = {
        name: delta_between(own.by_seed, initial.by_seed, own.judged)
        for name, own in methods.items()
        if (initial := own.initial()) is not None
    }
    return Results(claim, methods, deltas, gains)


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the columns' names and a row for each method; below one with diffusion its initial maps."""
    methods, base = results.methods, results.methods.get(results.claim.baseline)
    judged = list({each.name: each for method in methods.values() for each in method.judged}.values())
    names = [f"{task}, {metric} {'↑' if up else '↓'}" for task, metric, up in judged]
    head = ["method", *names, "Delta_MTL, %", "each seed", "gain over initial maps, %"]
    head += ["seeds", "steps", "s per step"]
    rows = []
    for name, method in methods.items():
        delta = results.deltas.get(name, Delta())
        each = ", ".join(text_of(value, 2, sign=True) for value in delta.each) or NONE
        gain = results.gains.get(name, Delta())
        row = [method.name, *_metrics(method, judged), _delta(delta), each, _delta(gain)]
        rows.append([*row, ", ".join(map(str, method.seeds)), method.steps(), _pace(method)])
        if (initial := method.initial()) is not None:
            behind = delta_between(initial.by_seed, base.by_seed, method.judged) if base else Delta()
            row = [f"{method.name}: its initial maps", *_metrics(initial, judged), _delta(behind)]
            rows.append([*row, *[""] * (len(head) - len(row))])
    return head, rows


def _metrics(method: Method, judged: Sequence[Judged]) -> list[str]:
    values = (method.value(task, metric) for task, metric, _ in judged)
    return [NONE if value is None else text_of(value) for value in values]


def _delta(delta: Delta) -> str:
    if not delta.each:
        return NONE
    return text_of(delta.value, 2, sign=True) + ("" if delta.paired else " (not paired)")


def _pace(method: Method) -> str:
    """Seconds per step, the mean over seeds."""
    own = [[run for run in method.runs if run.seed == seed] for seed in method.seeds]
    pace = [sum(run.seconds for run in runs) / sum(run.step for run in runs) for runs in own]
    return number(mean_of(value_of(pace)), 3)


def write_markdown(path: str | os.PathLike, results: Results) -> None:
    """Write the table as Markdown."""
    head, rows = table(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    write_text(path, text + "\n")


def write_json(path: str | os.PathLike, results: Results) -> None:
    """Write every run's metrics, the configuration of every method, and Delta_MTL of every seed."""
    claim, methods, runs = results.claim, {}, []
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
            methods[name]["gain_over_initial"] = results.gains[name].each
        for run in results.methods[name].runs if name in results.methods else ():
            runs.append(
                {
                    "seed": run.seed,
                    "method": name,
                    **({} if method.tasks is None else {"task": next(iter(run.primary))}),
                    "steps": run.step,
                    "seconds": run.seconds,
                    "seconds_per_step": run.seconds / run.step,
                    "metrics": run.metrics,
                }
            )
    whole = {"dmtl": __version__, "baseline": claim.baseline, "methods": methods, "runs": runs}
    write_text(Path(path), json.dumps(whole, indent=2) + "\n")
