"""Compare runs: figures of every method over its seeds, and Delta_MTL against one of them.

    comparison = compare(["runs/a0", "runs/a1", "runs/b0", "runs/b1"])
    comparison.methods["B"].name                    # "optim.lr=0.01", beside the baseline's "optim.lr=0.001"
    comparison.gains["B"].value                     # mean and sample standard deviation over pairs of runs

Names say what differs and may be long; in tables methods have letters, A is the baseline.

Delta_MTL is taken run by run. A run is paired with the baseline's run of the same seed; where a method and
the baseline share no seed, each of its runs stands against the mean of the baseline's.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmtl.errors import ConfigError, DataError, nearest
from dmtl.report.data import MetricRow, Value, value_of
from dmtl.report.facts import duration
from dmtl.report.figures import delta_of, metric_rows
from dmtl.report.methods import Method, find_runs, methods_of, read_all, seed_of
from dmtl.report.runs import Metrics, Run

# What two runs must share for their figures to mean the same.
SAME = ("root", "tasks", "size", "resize", "train_count", "val_count", "labels", "label_seed")


@dataclass(frozen=True)
class Gain:
    """Delta_MTL of a method in percent. `each` has one value a run that entered, `seeds` theirs; `paired`:
    each against the baseline's run of its seed. `why` there is no figure, where there is none."""

    each: list[float]
    seeds: list[int]
    paired: bool
    why: str = ""

    @property
    def value(self) -> Value:
        return value_of(self.each) if self.each else math.nan

    @property
    def basis(self) -> str:
        """What the figure was taken over, in words."""
        seeds = ", ".join(map(str, self.seeds))
        if not self.each:
            return ""
        return f"paired by seed: {seeds}" if self.paired else f"not paired: {seeds} against A's mean"


@dataclass
class Comparison:
    """Methods by letter, the baseline first; `gains` of all others. `warning` names what makes them not
    comparable, "" where nothing does."""

    methods: dict[str, Method]
    gains: dict[str, Gain]
    warning: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> Method:
        return next(iter(self.methods.values()))

    @property
    def runs(self) -> dict[str, list[Run]]:
        return {letter: method.runs for letter, method in self.methods.items()}

    def rows(self) -> list[MetricRow]:
        """One row a metric, main metrics first."""
        return metric_rows(self.runs, initial=False)

    def reference(self, run: Run) -> Metrics:
        """What a run is measured against: the baseline's run of its seed, else the mean of all of them."""
        return _reference(self.baseline)(run)


def compare(paths: Sequence[str | os.PathLike], baseline: str | None = None) -> Comparison:
    """Reads runs and compares them.

    Args:
        paths: run folders, or folders of runs (a claim's, say).
        baseline: a run folder or a method's name; default: the first path's method. Of a folder of several
            methods its first without diffusion, if it has one.

    Errors: DataError names a folder that is no run, or a damaged file; ConfigError an unknown baseline.
    """
    if not paths:
        raise ConfigError("compare: RUN must name at least one run, got none")
    first = baseline if baseline is not None and Path(baseline).is_dir() else paths[0]
    found = find_runs(first)
    runs, remarks = read_all([*found, *(run for path in paths for run in find_runs(path))])
    if not runs:
        raise DataError(f"{first}: has no run with an evaluation, expected at least one")
    methods, more = methods_of(runs)
    base = _baseline(methods, baseline, first, found)
    methods.sort(key=lambda method: method is not base)
    lettered = {chr(ord("A") + i) if i < 26 else f"M{i + 1}": method for i, method in enumerate(methods)}
    gains = {letter: gain(method, base) for letter, method in lettered.items() if method is not base}
    unfinished = [_unfinished(run) for method in methods for run in method.runs if not run.finished]
    none = [
        f"No Delta_MTL of {', '.join(letter for letter in gains if gains[letter].why == why)}: {why}."
        for why in dict.fromkeys(gain.why for gain in gains.values() if gain.why)
    ]
    return Comparison(lettered, gains, not_comparable(methods), [*unfinished, *remarks, *none, *more])


def gain(method: Method, base: Method) -> Gain:
    """Delta_MTL of a method's runs against a baseline's."""
    shared = [run for run in method.runs if seed_of(run) in base.seeds]
    reference = _reference(base)
    runs = shared or method.runs
    try:
        each = [delta_of(run, reference(run)) for run in runs]
    except ValueError as error:
        return Gain([], [], bool(shared), str(error))
    return Gain(each, [seed_of(run) for run in runs], bool(shared))


def not_comparable(methods: Sequence[Method]) -> str:
    """What differs in data, size, labels or tasks between methods, in one line; "" where nothing does."""
    found = []
    for key in SAME:
        values: dict[str, Path] = {}
        for method in methods:
            if (name := f"data.{key}") in method.settings:
                values.setdefault(str(method.settings[name]), method.runs[0].path)
        if len(values) > 1:
            found.append(
                f"data.{key} is " + ", ".join(f"{value} in {path}" for value, path in values.items())
            )
    first, *others = (run for method in methods for run in method.runs)
    if other := next((run for run in others if run.primary.keys() != first.primary.keys()), None):
        found.append(f"{other.path} has other tasks than {first.path}")
    labelled = [run for run in (first, *others) if run.labels is not None]
    if other := next((run for run in labelled if not labelled[0].labels.agrees(run.labels)), None):
        found.append(f"{other.path} learned from other labels than {labelled[0].path}")
    return f"Not comparable: {'; '.join(found)}." if found else ""


def summary(comparison: Comparison) -> list[dict[str, str]]:
    """One row a method for people: letter, name, what its Delta was taken over, seeds, steps, mean training
    time."""
    rows = []
    for letter, method in comparison.methods.items():
        gain = comparison.gains.get(letter)
        times = [run.seconds for run in method.runs if run.seconds]
        steps = sorted({run.step for run in method.runs if run.step is not None})
        ends = " to ".join(f"{step:,}" for step in dict.fromkeys((steps[0], steps[-1]))) if steps else "n/a"
        unfinished = sum(not run.finished for run in method.runs)
        rows.append(
            {
                "letter": letter,
                "name": method.name,
                "basis": "baseline" if gain is None else gain.basis,
                "seeds": ", ".join(map(str, method.seeds)),
                "steps": f"{ends} ({unfinished} unfinished)" if unfinished else ends,
                "time": duration(statistics.fmean(times)) if times else "n/a",
            }
        )
    return rows


def _baseline(methods: list[Method], wanted: str | None, first: object, found: Iterable[Path]) -> Method:
    names = [method.name for method in methods]
    if wanted is not None and not Path(wanted).is_dir():
        if wanted in names:
            return methods[names.index(wanted)]
        near = nearest(wanted, names)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ConfigError(f"--baseline must be a run or one of {'; '.join(names)}, got {wanted!r}{hint}")
    folders = {Path(os.path.normpath(path)) for path in found}
    own = [method for method in methods if any(run.path in folders for run in method.runs)]
    if not own:
        raise DataError(f"{first}: has no run with an evaluation, expected the baseline's")
    plain = [method for method in own if method.settings.get("model.diffusion") == "none"]
    return plain[0] if len(own) > 1 and plain else own[0]


def _reference(base: Method) -> Callable[[Run], Metrics]:
    by_seed = {seed_of(run): run.metrics for run in reversed(base.runs)}
    mean = _mean([run.metrics for run in base.runs])
    return lambda run: by_seed.get(seed_of(run), mean)


def _mean(several: Sequence[Metrics]) -> Metrics:
    """Mean of every figure that all have."""
    first, *others = several
    return {
        task: {
            metric: statistics.fmean([value, *(other[task][metric] for other in others)])
            for metric, value in figures.items()
            if all(metric in other.get(task, {}) for other in others)
        }
        for task, figures in first.items()
    }


def _unfinished(run: Run) -> str:
    total = f" of {run.planned_steps:,}" if run.planned_steps else ""
    return f"Unfinished: {run.path} counts as of its last evaluation, at step {run.step:,}{total}."
