"""From finished runs to the page: DiffusionMTL beside its baseline, over one or several seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dmtl.data import LabelledImages
from dmtl.errors import DmtlError
from dmtl.models import from_pretrained
from dmtl.report.curves import curves
from dmtl.report.data import ReportData, SamplePictures, value_of
from dmtl.report.facts import data_name, differences, facts
from dmtl.report.figures import delta_of, metric_rows
from dmtl.report.html import write_report
from dmtl.report.runs import Run, read_runs, require_same_tasks
from dmtl.report.samples import sample_pictures
from dmtl.report.uncertainty import averaging, error_auroc
from dmtl.train.pictures import evenly
from dmtl.train.setup import open_data
from dmtl.train.toml import config_from_dict

Paths = str | os.PathLike | Sequence[str | os.PathLike]


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
    samples: int = 8,
    device: str | torch.device = "cpu",
) -> Path:
    """Writes the report of finished runs to `out_path` and returns that path.

    Args:
        diffusion_runs, baseline_runs: run folders (as `dmtl train` leaves them), one or one for each seed, in
            the same order: Delta_MTL is taken pair by pair, then averaged. `baseline_runs` may be None.
        names: what the two methods are called on the page.
        train_set, val_set: where pictures come from; default: opened as the first run's configuration says.
        pictures, train_pictures: images shown of the validation and of the training split, by the first pair
            of runs.
        steps: denoising steps of the pictures; default as trained.
        samples: draws of the noise that tell where the first DiffusionMTL run is unsure, shown beside its
            errors; 0 or 1: none of that.

    Errors: DataError for a folder that is no finished run or for runs of different tasks; ValueError for
    unequal numbers of runs; OSError when the page cannot be written. Missing logs, labels, models or data
    only leave out their section.
    """
    methods = {names[0]: read_runs(diffusion_runs)}
    if baseline_runs is not None:
        methods = {names[1]: read_runs(baseline_runs), **methods}
    data = report_data(methods, title=title, subtitle=subtitle, notes=notes)
    try:
        _add_pictures(data, methods, train_set, val_set, pictures, train_pictures, steps, samples, device)
    except (DmtlError, OSError) as error:  # figures without pictures are better than no page
        data.notes = [*data.notes, f"No pictures: {error}"]
    return write_report(out_path, data)


def report_data(
    methods: Mapping[str, Sequence[Run]],
    *,
    title: str | None = None,
    subtitle: str = "",
    notes: Sequence[str] = (),
) -> ReportData:
    """All that the runs' files say, without pictures. The first method is the reference of Delta_MTL."""
    counts = {len(runs) for runs in methods.values()}
    if len(counts) != 1:
        raise ValueError(
            f"report_data: methods must have equally many runs each, got "
            f"{', '.join(f'{len(r)} of {n}' for n, r in methods.items())}"
        )
    (_reference, base), *others = methods.items()
    for _, runs in others:
        require_same_tasks(base[0], runs[0])
    last = list(methods.values())[-1][0]
    delta, remarks = {}, differences(methods)
    for name, runs in others:
        try:
            delta[name] = value_of(
                [delta_of(run, other.metrics) for run, other in zip(runs, base, strict=True)]
            )
        except ValueError as error:
            delta[name] = math.nan
            remarks.append(f"No Delta of {name}: {error}")
    return ReportData(
        title=title or f"{' beside '.join(list(methods)[::-1])} on {data_name(last)}",
        subtitle=subtitle,
        facts=facts(methods),
        label_matrix=last.labels,
        metrics=metric_rows(methods),
        delta=delta,
        runs=counts.pop(),
        curves=curves(methods),
        notes=[*notes, *remarks],
    )


def _add_pictures(
    data: ReportData, methods, train_set, val_set, pictures, train_pictures, steps, samples, device
) -> None:
    models = {name: from_pretrained(runs[0].path).to(device) for name, runs in list(methods.items())[::-1]}
    method, [run, *_] = list(methods.items())[-1]
    for name, model in models.items():
        count = sum(p.numel() for p in model.parameters())
        data.facts = [*data.facts, (f"Parameters, {name}", f"{count / 1e6:.1f} M")]
    if val_set is None or (train_set is None and train_pictures):
        opened = open_data(config_from_dict(run.config).data)
        train_set, val_set = train_set or opened.train, val_set or opened.val
    engine = averaging(models[method], samples)
    if engine is not None:
        data.uncertainty = error_auroc(engine, val_set, method, steps)
    data.legends = {n: t.legend() for model in models.values() for n, t in model.tasks.items()}
    shown: list[SamplePictures] = sample_pictures(
        models, val_set, evenly(len(val_set), pictures), steps=steps, engine=engine
    )
    for sample in shown:
        sample.note = "validation image"
    if train_pictures and run.labels is not None:
        seen = sample_pictures(
            models, train_set, evenly(len(train_set), train_pictures), labels=run.labels, steps=steps
        )
        for sample in seen:
            sample.note = "training image"
        shown += seen
    data.samples = shown
