"""What was trained on what, and whatever makes a comparison of runs less than fair."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmtl.report.runs import Run


def facts(methods: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    """What was trained on what, from the configuration of the last method; times of all."""
    runs = list(methods.values())[-1]
    run = runs[0]
    size, model = run.setting("data", "size"), run.setting("model", "diffusion")
    total = run.planned_steps or run.step
    chain = run.setting("model", "betas")
    chain = len(chain) if chain else run.setting("model", "steps")
    result = [
        ("Data", data_name(run) + (f", {size[0]} × {size[1]}" if size else "")),
        ("Training images", None if run.labels is None else f"{len(run.labels.ids):,}"),
        ("Labels", run.setting("data", "labels")),
        ("Tasks", len(run.primary)),
        ("Training", total and f"{total:,} steps of {run.setting('optim', 'batch_size', '?')}"),
        ("Backbone", run.setting("model", "backbone")),
        ("Width", run.setting("model", "width")),
        ("Diffusion", model and model != "none" and f"{model}, {chain} steps"),
        (
            "Seeds",
            ", ".join(dict.fromkeys(str(r.setting("optim", "seed", "?")) for r in runs))
            if run.config
            else None,
        ),
    ]
    for name, own in methods.items():
        times = [r.seconds for r in own if r.seconds]
        result.append((f"Time, {name}", times and duration(statistics.fmean(times))))
    return [(label, str(value)) for label, value in result if value]


def duration(seconds: float) -> str:
    """ "48 s", "3 min 12 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def data_name(run: Run) -> str:
    return Path(str(run.setting("data", "root", "unknown data"))).name


def differences(methods: Mapping[str, Sequence[Run]]) -> list[str]:
    """Whatever makes the comparison less than fair, said aloud."""
    remarks = []
    (reference, base), *others = methods.items()
    for name, runs in others:
        if base[0].setting("model", "diffusion") == "none" != runs[0].setting("model", "diffusion", "none"):
            remarks.append(
                f"The training loss of {name} counts its initial and its final maps, that of {reference} "
                "has one map a task: compare the metrics, not the losses."
            )
        for run, other in zip(runs, base, strict=True):
            pair = f"{run.path.name}, {other.path.name}"
            if run.labels is not None and other.labels is not None and not run.labels.agrees(other.labels):
                remarks.append(f"{name} and {reference} did not learn from the same labels ({pair}).")
            if run.step != other.step:
                remarks.append(f"{name} took {run.step} steps, {reference} {other.step} ({pair}).")
            for section in ("data", "optim"):
                mine, theirs = run.config.get(section, {}), other.config.get(section, {})
                keys = sorted(
                    k
                    for k in {*mine, *theirs}
                    if mine.get(k) != theirs.get(k) and k not in ("cache", "workers")
                )
                remarks += [
                    f"{section}.{k}: {name} {mine.get(k)!r}, {reference} {theirs.get(k)!r}." for k in keys
                ]
    return list(dict.fromkeys(remarks))
