"""From finished runs to the page: DiffusionMTL beside its baseline, over one or several seeds."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from dmtl.data import LabelledImages
from dmtl.errors import DmtlError
from dmtl.metrics import delta_mtl
from dmtl.models import load_model
from dmtl.report.data import Chart, MetricRow, ReportData, SamplePictures, Value
from dmtl.report.html import write_report
from dmtl.report.runs import LOWER_IS_BETTER, Run, read_runs, require_same_tasks, unit_of
from dmtl.report.samples import legends, sample_pictures
from dmtl.train.config import config_from_dict
from dmtl.train.setup import open_data

Paths = str | os.PathLike | Sequence[str | os.PathLike]
INITIAL = "initial/"


def report_from_runs(
    diffusion_runs: Paths,
    baseline_runs: Paths | None,
    out_path: str | os.PathLike,
    *,
    names: tuple[str, str] = ("DiffusionMTL", "MTL"),
    title: str | None = None,
    subtitle: str = "",
    notes: Sequence[str] = (),
    train_set: LabelledImages | None = None,
    val_set: LabelledImages | None = None,
    pictures: int = 4,
    train_pictures: int = 2,
    steps: int | None = None,
    device: str | torch.device = "cpu",
) -> Path:
    """Writes the report of finished runs to `out_path` and returns that path.

    Args:
        diffusion_runs, baseline_runs: run folders (as `dmtl train` leaves them), one or one for each seed, in the same order:
            Delta_MTL is taken pair by pair, then averaged. `baseline_runs` may be None.
        names: what the two methods are called on the page.
        train_set, val_set: where pictures come from; default: opened as the first run's configuration says.
        pictures, train_pictures: images shown of the validation and of the training split, by the first pair of runs.
        steps: denoising steps of the pictures; default as trained.

    Errors: DataError for a folder that is no finished run or for runs of different tasks; ValueError for unequal numbers of
    runs; OSError when the page cannot be written. Missing logs, labels, models or data only leave out their section.
    """
    methods = {names[0]: read_runs(diffusion_runs)}
    if baseline_runs is not None:
        methods = {names[1]: read_runs(baseline_runs), **methods}
    data = report_data(methods, title=title, subtitle=subtitle, notes=notes)
    try:
        _add_pictures(data, methods, train_set, val_set, pictures, train_pictures, steps, device)
    except (DmtlError, OSError) as error:  # figures without pictures are better than no page
        data.notes = [*data.notes, f"No pictures: {error}"]
    return write_report(out_path, data)


def report_data(
    methods: Mapping[str, Sequence[Run]], *, title: str | None = None, subtitle: str = "", notes: Sequence[str] = ()
) -> ReportData:
    """All that the runs' files say, without pictures. The first method is the reference of Delta_MTL."""
    counts = {len(runs) for runs in methods.values()}
    if len(counts) != 1:
        raise ValueError(f"report_data: methods must have equally many runs each, got "
                         f"{', '.join(f'{len(r)} of {n}' for n, r in methods.items())}")
    (reference, base), *others = methods.items()
    for _, runs in others:
        require_same_tasks(base[0], runs[0])
    last = list(methods.values())[-1][0]
    delta, remarks = {}, _differences(methods)
    for name, runs in others:
        try:
            delta[name] = _value([_delta(run, other) for run, other in zip(runs, base, strict=True)])
        except ValueError as error:
            delta[name] = math.nan
            remarks.append(f"No Delta of {name}: {error}")
    return ReportData(
        title=title or f"{' beside '.join(list(methods)[::-1])} on {_data_name(last)}",
        subtitle=subtitle,
        facts=_facts(methods),
        label_matrix=last.labels,
        metrics=_metric_rows(methods),
        delta=delta,
        runs=counts.pop(),
        curves=_curves(methods),
        notes=[*notes, *remarks],
    )


def _value(values: Sequence[float]) -> Value:
    return values[0] if len(values) == 1 else (statistics.fmean(values), statistics.stdev(values))


def _delta(run: Run, reference: Run) -> float:
    tasks = [SimpleNamespace(name=t, primary=n, higher_is_better=h) for t, (n, _, h) in run.primary.items()]
    return delta_mtl(run.metrics, reference.metrics, tasks)


def _metric_rows(methods: Mapping[str, Sequence[Run]]) -> list[MetricRow]:
    """The main metric of each task first, then its others; classes' own IoUs would fill pages and are left out."""
    first = next(iter(methods.values()))[0]
    rows = []
    for task, (primary, _, higher) in first.primary.items():
        others = [m for m in first.metrics[task] if m != primary and not m.startswith("IoU/")]
        for metric in [primary, *others]:
            values = {}
            for name, runs in methods.items():
                # The initial map of the same network tells what its denoising adds.
                for key, column in ((task, name), (INITIAL + task, f"{name}, initial map")):
                    found = [run.metrics[key][metric] for run in runs if metric in run.metrics.get(key, {})]
                    if len(found) == len(runs):
                        values[column] = _value(found)
            better = higher if metric == primary else metric not in LOWER_IS_BETTER
            rows.append(MetricRow(task, metric, unit_of(metric, first.tasks.get(task)), better, values, metric == primary))
    return rows


def _curves(methods: Mapping[str, Sequence[Run]]) -> list[Chart]:
    first = next(iter(methods.values()))[0]
    runs_note = "" if len(next(iter(methods.values()))) == 1 else ", mean of runs"
    losses = {name: _smooth(*_mean_curve(runs, "train", lambda row: row.get("loss"))) for name, runs in methods.items()}
    charts = [Chart(f"Training loss, smoothed{runs_note}", "step", "loss", losses, log_y=True)]
    for task, (metric, _, higher) in first.primary.items():
        series = {}
        for name, runs in methods.items():
            for key, label in ((task, name), (INITIAL + task, f"{name}, initial map")):
                curve = _mean_curve(runs, "eval", lambda row, key=key: row.get("metrics", {}).get(key, {}).get(metric))
                if curve[0]:
                    series[label] = curve
        unit = unit_of(metric, first.tasks.get(task))
        arrow = "↑" if higher else "↓"
        charts.append(Chart(f"{task} {arrow}{runs_note}", "step", f"{metric} ({unit})" if unit else metric, series))
    return charts


def _mean_curve(runs: Sequence[Run], event: str, pick: Callable[[dict], float | None]) -> tuple[list[float], list[float]]:
    """Mean over runs at the steps that all of them logged."""
    curves = [{row["step"]: pick(row) for row in run.rows(event) if pick(row) is not None} for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, [statistics.fmean(curve[step] for curve in curves) for step in steps]


def _smooth(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Centred running mean over a twentieth of the curve: one-label batches differ widely in their loss."""
    half = len(ys) // 40
    return xs, [statistics.fmean(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]


def _facts(methods: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    """What was trained on what, from the configuration of the last method (the first one where a fact is its own)."""
    runs = list(methods.values())[-1]
    run = runs[0]
    size, model = run.setting("data", "size"), run.setting("model", "diffusion")
    total = run.setting("optim", "steps", run.step)
    chain = run.setting("model", "betas")
    chain = len(chain) if chain else run.setting("model", "steps")
    facts = [
        ("Data", _data_name(run) + (f", {size[0]} × {size[1]}" if size else "")),
        ("Training images", None if run.labels is None else f"{len(run.labels.ids):,}"),
        ("Labels", run.setting("data", "labels")),
        ("Tasks", len(run.primary)),
        ("Training", total and f"{total:,} steps of {run.setting('optim', 'batch_size', '?')}"),
        ("Backbone", run.setting("model", "backbone")),
        ("Width", run.setting("model", "width")),
        ("Diffusion", model and model != "none" and f"{model}, {chain} steps"),
        ("Seeds", ", ".join(dict.fromkeys(str(r.setting("optim", "seed", "?")) for r in runs)) if run.config else None),
    ]
    for name, own in methods.items():
        times = [r.seconds for r in own if r.seconds]
        facts.append((f"Time, {name}", times and duration(statistics.fmean(times))))
    return [(label, str(value)) for label, value in facts if value]


def duration(seconds: float) -> str:
    """"48 s", "3 min 12 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _data_name(run: Run) -> str:
    return Path(str(run.setting("data", "root", "unknown data"))).name


def _differences(methods: Mapping[str, Sequence[Run]]) -> list[str]:
    """Whatever makes the comparison less than fair, said aloud."""
    remarks = []
    (reference, base), *others = methods.items()
    for name, runs in others:
        if base[0].setting("model", "diffusion") == "none" != runs[0].setting("model", "diffusion", "none"):
            remarks.append(f"The training loss of {name} counts its initial and its final maps, that of {reference} has one map "
                           "a task: compare the metrics, not the losses.")
        for run, other in zip(runs, base, strict=True):
            if run.labels is not None and other.labels is not None and run.labels != other.labels:
                remarks.append(f"{name} and {reference} did not learn from the same labels ({run.path.name}, {other.path.name}).")
            if run.step != other.step:
                remarks.append(f"{name} took {run.step} steps ({run.path.name}), {reference} {other.step} ({other.path.name}).")
            for section in ("data", "optim"):
                mine, theirs = run.config.get(section, {}), other.config.get(section, {})
                keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k) and k not in ("cache", "workers"))
                remarks += [f"{section}.{k}: {name} {mine.get(k)!r}, {reference} {theirs.get(k)!r}." for k in keys]
    return list(dict.fromkeys(remarks))


def _add_pictures(data: ReportData, methods, train_set, val_set, pictures, train_pictures, steps, device) -> None:
    models = {name: load_model(runs[0].path / "model").to(device) for name, runs in list(methods.items())[::-1]}
    run = list(methods.values())[-1][0]
    for name, model in models.items():
        count = sum(p.numel() for p in model.parameters())
        data.facts = [*data.facts, (f"Parameters, {name}", f"{count / 1e6:.1f} M")]
    if val_set is None or (train_set is None and train_pictures):
        opened = open_data(config_from_dict(run.config).data)
        train_set, val_set = train_set or opened.train, val_set or opened.val
    data.legends = legends({n: t for model in models.values() for n, t in model.tasks.items()})
    samples: list[SamplePictures] = sample_pictures(models, val_set, _spread(len(val_set), pictures), steps=steps)
    for sample in samples:
        sample.note = "validation image"
    if train_pictures and run.labels is not None:
        seen = sample_pictures(models, train_set, _spread(len(train_set), train_pictures), labels=run.labels, steps=steps)
        for sample in seen:
            sample.note = "training image"
        samples += seen
    data.samples = samples


def _spread(length: int, count: int) -> list[int]:
    """Indices evenly spread over a data set."""
    count = min(count, length)
    return [round((i + 0.5) * length / count - 0.5) for i in range(count)]
