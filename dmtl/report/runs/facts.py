"""What was trained on what."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import Run
from dmtl.text import duration


def facts(methods: Mapping[str, Method]) -> list[tuple[str, str]]:
    """Return what was trained on what, as the configuration of the last method says; times of all."""
    method = list(methods.values())[-1]
    run = method.runs[0]
    size, diffusion = run.setting("data", "size"), run.setting("model", "diffusion")
    total = run.planned_steps or run.step
    betas = run.setting("model", "betas")
    chain = len(betas) if betas else run.setting("model", "steps")
    result = [
        ("Data", data_name(run) + (f", {size[0]} × {size[1]}" if size else "")),
        ("Training images", None if run.labels is None else f"{len(run.labels.ids):,}"),
        ("Labels", run.setting("data", "labels")),
        ("Tasks", len(run.primary)),
        ("Training", total and f"{total:,} steps of {run.setting('optim', 'batch_size', '?')}"),
        ("Backbone", run.setting("model", "backbone")),
        ("Width", run.setting("model", "width")),
        ("Diffusion", diffusion and diffusion != "none" and f"{diffusion}, {chain} steps"),
        ("Seeds", ", ".join(map(str, method.seeds)) if run.config else None),
    ]
    for label, own in methods.items():
        times = [run.seconds for run in own.runs if run.seconds]
        result.append((f"Time, {label}", times and duration(statistics.fmean(times))))
    return [(label, str(value)) for label, value in result if value]


def data_name(run: Run) -> str:
    """Return the name of a run's data set."""
    return Path(str(run.setting("data", "root", "unknown data"))).name
