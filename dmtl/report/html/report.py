"""Write the page about finished runs: comparison of methods, labels, training curves, pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from dmtl.data import LabelledImages
from dmtl.data.loading.order import evenly
from dmtl.errors import DmtlError
from dmtl.models import from_pretrained
from dmtl.report.html.content import ReportData, write_report
from dmtl.report.html.predictions import sample_pictures
from dmtl.report.html.uncertainty import averaging, error_auroc
from dmtl.report.runs.comparison import Comparison, metric_rows, source_rows
from dmtl.report.runs.curves import curves
from dmtl.report.runs.methods import Method
from dmtl.train.setup import open_data
from dmtl.train.toml import config_from_dict

FEW = 2  # with at most this number of methods, show initial predictions and, by default, pictures


def write_page(
    path: str | os.PathLike,
    comparison: Comparison,
    *,
    train_set: LabelledImages | None = None,
    val_set: LabelledImages | None = None,
    pictures: int | None = None,
    train_pictures: int = 2,
    steps: int | None = None,
    samples: int = 8,
    device: str | torch.device = "cpu",
) -> Path:
    """Write the page of a comparison. Sections whose logs, labels, models or data are missing are left out.

    Args:
        path: the file to write.
        comparison: the runs.
        train_set: images for the training pictures; None: those of the last method's first run.
        val_set: images for the validation pictures; None: those of the last method's first run.
        pictures: number of validation images to show with predictions of the first run of every method; None:
            4, or 0 if there are more than two methods.
        train_pictures: number of training images to show in the same way.
        steps: number of denoising steps for the pictures; None: as trained.
        samples: number of noise samples for pictures of the last method's uncertainty, next to its errors; 0
            or 1: no such pictures.
        device: device that predicts the pictures.

    Raises:
        OSError: the page cannot be written.
    """
    data = report_data(comparison)
    if pictures is None:
        pictures = 4 if len(comparison.methods) <= FEW else 0
    if pictures:
        run = list(comparison.methods.values())[-1].runs[0]
        try:
            models = {
                label: from_pretrained(method.runs[0].path).to(device)
                for label, method in reversed(comparison.methods.items())
            }
            for label, model in models.items():
                count = sum(p.numel() for p in model.parameters())
                data.facts = [*data.facts, (f"Parameters, {label}", f"{count / 1e6:.1f} M")]
            if val_set is None or (train_set is None and train_pictures):
                opened = open_data(config_from_dict(run.config).data)
                train_set, val_set = train_set or opened.train, val_set or opened.val
            show = partial(sample_pictures, models, steps=steps)
            last = list(comparison.methods)[-1]
            if (engine := averaging(models[last], samples)) is not None:
                data.uncertainty = error_auroc(engine, val_set, last, steps)
            data.legends = {n: task.legend() for model in models.values() for n, task in model.tasks.items()}
            shown = show(val_set, evenly(len(val_set), pictures), engine=engine, note="validation image")
            if train_pictures and train_set is not None and run.labels is not None:
                indices = evenly(len(train_set), train_pictures)
                shown += show(train_set, indices, labels=run.labels, note="training image")
            data.samples = shown
        except (DmtlError, OSError) as error:  # metrics without pictures are better than no page
            data.notes = [*data.notes, f"No pictures: {error}"]
    return write_report(path, data)


def report_data(comparison: Comparison) -> ReportData:
    """Return the content of the page as far as the runs' files contain it, without pictures."""
    methods = comparison.methods
    few = len(methods) <= FEW
    last = list(methods.values())[-1].runs[0]
    labels = list(methods)[::-1]
    what = " compared with ".join(labels) if few else f"{len(labels)} methods"
    shown = comparison.with_initial() if few else methods
    names = list(dict.fromkeys(run.data_name for method in methods.values() for run in method.runs))
    sources = [source["name"] for source in last.setting("data", "sources", [])]
    return ReportData(
        title=f"{what} on {' and '.join(names)}" if len(names) <= FEW else what,
        warning=comparison.warning,
        facts=_facts(methods) if few else (),
        summary=comparison.summary(),
        label_matrix=last.labels if few else None,
        metrics=metric_rows(shown),
        sources=sources,
        by_source=source_rows(list(methods.values())[-1]) if few and last.sources else (),
        order=list(shown),
        delta={label: delta.value for label, delta in comparison.deltas.items()},
        runs=max((len(delta.each) for delta in comparison.deltas.values()), default=1),
        curves=curves(comparison, initial=few),
        notes=comparison.remarks,
    )


def _facts(methods: Mapping[str, Method]) -> list[tuple[str, object]]:
    """Return facts about data, training and model from the last method's configuration, and training
    times."""
    method = list(methods.values())[-1]
    run = method.runs[0]
    setting: Callable = run.setting
    size, diffusion, betas = setting("data", "size"), setting("model", "diffusion"), setting("model", "betas")
    total = run.planned_steps or run.step
    chain = len(betas) if betas else setting("model", "steps")
    result = [
        ("Data", run.data_name + (f", {size[0]} × {size[1]}" if size else "")),
        ("Training images", None if run.labels is None else f"{len(run.labels.ids):,}"),
        ("Labels", setting("data", "labels")),
        ("Tasks", len(run.primary)),
        ("Training", total and f"{total:,} steps of {setting('optim', 'batch_size', '?')}"),
        ("Backbone", setting("model", "backbone")),
        ("Width", setting("model", "width")),
        ("Diffusion", diffusion and diffusion != "none" and f"{diffusion}, {chain} steps"),
        ("Seeds", ", ".join(map(str, method.seeds)) if run.config else None),
    ]
    result += [(f"Time, {label}", own.time()) for label, own in methods.items()]
    return [(label, value) for label, value in result if value]
