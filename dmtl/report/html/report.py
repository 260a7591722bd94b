"""The page about finished runs: how methods compare, what was labelled, how training went, pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dmtl.data import LabelledImages
from dmtl.errors import DmtlError
from dmtl.models import from_pretrained
from dmtl.report.html.content import ReportData
from dmtl.report.html.predictions import sample_pictures
from dmtl.report.html.sections import write_report
from dmtl.report.html.uncertainty import averaging, error_auroc
from dmtl.report.runs.comparison import Comparison, compare, metric_rows
from dmtl.report.runs.curves import curves
from dmtl.report.runs.facts import data_name, facts
from dmtl.report.runs.methods import Method
from dmtl.train.pictures import evenly
from dmtl.train.setup import open_data
from dmtl.train.toml import config_from_dict

Paths = str | os.PathLike | Sequence[str | os.PathLike]
FEW = 2  # methods that are shown with their initial maps and, unless asked otherwise, with pictures


def report_from_runs(
    runs: Paths,
    baseline: Paths | None,
    out_path: str | os.PathLike,
    *,
    names: tuple[str, str] = ("DiffusionMTL", "MTL"),
    **options,
) -> Path:
    """Write the report of finished runs to `out_path` and return that path.

    Args:
        runs, baseline: one run folder, or several that differ in their seed. Delta_MTL is paired by seed.
            `baseline` may be None.
        names: what the two methods are called on the page.
        options: as for `write_page`.

    Raises:
        DataError: a folder is not a run, or a file is damaged.
        OSError: the page cannot be written.
    """
    ours, theirs = _paths(runs), _paths(baseline)
    labels = names[::-1] if theirs else names[:1]
    return write_page(out_path, compare(ours, theirs, labels), **options)


def _paths(paths: Paths | None) -> list[str | os.PathLike]:
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return [] if paths is None else [paths]
    return list(paths)


def write_page(
    path: str | os.PathLike,
    comparison: Comparison,
    *,
    title: str | None = None,
    subtitle: str = "",
    notes: Sequence[str] = (),
    train_set: LabelledImages | None = None,
    val_set: LabelledImages | None = None,
    pictures: int | None = None,
    train_pictures: int = 2,
    steps: int | None = None,
    samples: int = 8,
    device: str | torch.device = "cpu",
) -> Path:
    """Write the page of a comparison. Missing logs, labels, models or data only leave out their section.

    Args:
        train_set, val_set: where pictures come from; default: opened as the last method's first run says.
        pictures: images of the validation split, by the first run of every method; default: 4, or none if
            there are more than two methods.
        train_pictures: the same of the training split.
        steps: denoising steps of the pictures; default as trained.
        samples: noise samples that say where the last method is unsure, shown next to its errors; 0 or 1:
            none of that.

    Raises:
        OSError: the page cannot be written.
    """
    data = report_data(comparison, title=title, subtitle=subtitle, notes=notes)
    pictures = (4 if len(comparison.methods) <= FEW else 0) if pictures is None else pictures
    if pictures:
        sets, counts = (train_set, val_set), (pictures, train_pictures)
        try:
            _add_pictures(data, comparison.methods, sets, counts, steps, samples, device)
        except (DmtlError, OSError) as error:  # metrics without pictures are better than no page
            data.notes = [*data.notes, f"No pictures: {error}"]
    return write_report(path, data)


def report_data(
    comparison: Comparison, *, title: str | None = None, subtitle: str = "", notes: Sequence[str] = ()
) -> ReportData:
    """Return all that the runs' files say, without pictures."""
    methods = comparison.methods
    few = len(methods) <= FEW
    last = list(methods.values())[-1].runs[0]
    labels = list(methods)[::-1]
    what = " compared with ".join(labels) if few else f"{len(labels)} methods"
    return ReportData(
        title=title or f"{what} on {data_name(last)}",
        subtitle=subtitle,
        warning=comparison.warning,
        facts=facts(methods) if few else (),
        summary=comparison.summary(),
        label_matrix=last.labels if few else None,
        metrics=metric_rows(comparison.with_initial() if few else methods),
        order=list(comparison.with_initial() if few else methods),
        delta={label: delta.value for label, delta in comparison.deltas.items()},
        runs=max((len(delta.each) for delta in comparison.deltas.values()), default=1),
        curves=curves(comparison, initial=few),
        notes=[*notes, *comparison.remarks],
    )


def _add_pictures(data: ReportData, methods: Mapping[str, Method], sets, counts, steps, samples, device):
    """Add pictures, uncertainty and legends to `data`; `sets` and `counts` are of training and validation."""
    last, run = list(methods)[-1], list(methods.values())[-1].runs[0]
    models = {label: from_pretrained(methods[label].runs[0].path).to(device) for label in list(methods)[::-1]}
    for label, model in models.items():
        count = sum(p.numel() for p in model.parameters())
        data.facts = [*data.facts, (f"Parameters, {label}", f"{count / 1e6:.1f} M")]
    (train_set, val_set), (pictures, train_pictures) = sets, counts
    if val_set is None or (train_set is None and train_pictures):
        opened = open_data(config_from_dict(run.config).data)
        train_set, val_set = train_set or opened.train, val_set or opened.val
    engine = averaging(models[last], samples)
    if engine is not None:
        data.uncertainty = error_auroc(engine, val_set, last, steps)
    data.legends = {name: task.legend() for model in models.values() for name, task in model.tasks.items()}
    indices = evenly(len(val_set), pictures)
    shown = sample_pictures(models, val_set, indices, steps=steps, engine=engine)
    for sample in shown:
        sample.note = "validation image"
    if train_pictures and run.labels is not None:
        indices = evenly(len(train_set), train_pictures)
        seen = sample_pictures(models, train_set, indices, labels=run.labels, steps=steps)
        for sample in seen:
            sample.note = "training image"
        shown += seen
    data.samples = shown
