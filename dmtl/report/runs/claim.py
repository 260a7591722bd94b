"""Write the results of a claim: finished runs of its methods as rows of text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmtl import __version__
from dmtl.report.runs.comparison import Delta, delta_between
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import Run, read_run
from dmtl.report.runs.values import text_of
from dmtl.runtime import files
from dmtl.text import number
from dmtl.train.claim import Claim
from dmtl.train.jobs import finished

NONE = "-"


@dataclass(frozen=True)
class Results:
    """The finished runs of a claim: methods by name. The runs of one seed for its parts count as one run."""

    claim: Claim
    methods: dict[str, Method]

    def delta(self, method: Method) -> Delta | None:
        """Return Delta_MTL relative to the baseline; None if that is the same method or has no runs."""
        base = self.methods.get(self.claim.baseline)
        if base is None or base == method:
            return None
        return delta_between(method.by_seed, base.by_seed, method.judged)

    def gain(self, method: Method) -> Delta | None:
        """Return Delta_MTL of every seed relative to its own initial predictions; None without these."""
        initial = method.initial()
        return None if initial is None else delta_between(method.by_seed, initial.by_seed, method.judged)


def results_of(claim: Claim, out: str | os.PathLike, seeds: Iterable[int]) -> Results:
    """Read the finished runs below `out`; raise DataError if one is damaged."""
    seeds, methods = list(seeds), {}
    for name, method in claim.methods.items():
        by_seed = [list(method.folders(Path(out), seed).values()) for seed in seeds]
        runs = [read_run(path) for paths in by_seed if all(map(finished, paths)) for path in paths]
        if runs:
            methods[name] = Method(method.label, runs)
    return Results(claim, methods)


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns and the rows: each method, and its initial predictions if it has
    any."""
    methods = results.methods.values()
    judged = list({each.name: each for method in methods for each in method.judged}.values())
    names = [f"{task}, {metric} {'↑' if up else '↓'}" for task, metric, up in judged]
    head = ["method", *names, "Delta_MTL, %", "each seed", "gain over initial maps, %"]
    head += ["seeds", "steps", "s per step"]
    rows = []
    for method in methods:
        initial = method.initial()
        for name, own in ((method.name, method), (f"{method.name}: its initial maps", initial)):
            if own is not None:
                values = (own.value(task, metric) for task, metric, _ in judged)
                metrics = [NONE if value is None else text_of(value) for value in values]
                rows.append([name, *metrics, _text(results.delta(own))])
        delta = results.delta(method)
        each = ", ".join(text_of(value, 2, sign=True) for value in delta.each) if delta else ""
        rest = [each or NONE, _text(results.gain(method)), ", ".join(map(str, method.seeds)), method.steps()]
        by_seed = [[run for run in method.runs if run.seed == seed] for seed in method.seeds]
        rows[-1 if initial is None else -2] += [*rest, number(statistics.fmean(map(_pace, by_seed)), 3)]
    return head, [row + [""] * (len(head) - len(row)) for row in rows]


def _pace(runs: Sequence[Run]) -> float:
    """Return the mean seconds per step of finished runs that recorded steps and time."""
    return sum(run.seconds or 0.0 for run in runs) / sum(run.step or 0 for run in runs)


def _text(delta: Delta | None) -> str:
    if delta is None or not delta.each:
        return NONE
    return text_of(delta.value, 2, sign=True) + ("" if delta.paired else " (not paired)")


def write_markdown(path: str | os.PathLike, results: Results) -> None:
    """Write the table as Markdown."""
    head, rows = table(results)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    files.write_text(path, text + "\n")


def write_json(path: str | os.PathLike, results: Results) -> None:
    """Write JSON with the metrics of every run, the configuration of every method and Delta_MTL of every
    seed."""
    claim, runs = results.claim, []
    methods: dict[str, dict[str, object]] = {}
    for name, method in claim.methods.items():
        config = dataclasses.asdict(method.config)
        for key in ("out", "device"):
            config.pop(key)
        config["optim"].pop("seed")  # differs between runs
        methods[name] = {"label": method.label, "like": method.like, "time_of": method.time_of}
        methods[name] |= {"parts": method.parts and list(method.parts), "config": config}
        if (own := results.methods.get(name)) is None:
            continue
        if delta := results.delta(own):
            methods[name]["delta"] = {"each": delta.each, "seeds": delta.seeds, "paired": delta.paired}
        if gain := results.gain(own):
            methods[name]["gain_over_initial"] = gain.each
        for run in own.runs:
            about: dict[str, object] = {"seed": run.seed, "method": name}
            about |= {} if method.parts is None else {"part": run.path.name}
            about |= {"steps": run.step, "seconds": run.seconds, "seconds_per_step": _pace([run])}
            runs.append(about | {"metrics": run.metrics})
    whole = {"dmtl": __version__, "baseline": claim.baseline, "methods": methods, "runs": runs}
    files.write_json(path, whole)
