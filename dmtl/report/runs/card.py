"""Write the part of a model card (`README.md` of a model folder) that follows from a run."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dmtl.data.base import source_of
from dmtl.engine.describe import describe_model
from dmtl.errors import DataError
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.report.runs.comparison import metric_rows
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import Run
from dmtl.report.runs.values import text_of
from dmtl.text import duration

BEGIN = "<!-- begin: written by `dmtl convert` -->"
END = "<!-- end: written by `dmtl convert` -->"


def model_card(run: Run, model: DiffusionMTL | MultiTaskBaseline, path: str | os.PathLike) -> str:
    """Return the model card of a finished run.

    Args:
        run: the run.
        model: its model.
        path: the file of the card. If it exists, only the part between the lines `BEGIN` and `END` is
            replaced.

    Raises:
        DataError: the file exists, but does not have these lines.
    """
    path = Path(path)
    title = f"# {path.absolute().parent.name}\n\n"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{title}{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataError(
            f"{path}: lacks the lines {BEGIN} and {END}; add them where the results shall be, or delete it"
        )
    return f"{before}{BEGIN}\n{_summary(run, model)}{END}{after}"


def _summary(run: Run, model: DiffusionMTL | MultiTaskBaseline) -> str:
    """Return text about the network and the training, and a table of the main metrics."""
    facts = describe_model(model, torch.device("cpu"), [])
    size, batch = run.setting("data", "size"), run.setting("optim", "batch_size")
    training = f"{run.step:,} steps" if run.step else "unknown number of steps"
    training += f" of {batch} images" if batch else ""
    training += f" of {size[0]} x {size[1]} pixels" if size else ""
    training += f" in {duration(run.seconds)}" if run.seconds else ""
    training += f", seed {run.seed}"
    weights, frozen = run.setting("optim", "weights"), run.setting("optim", "freeze")
    training += f", from the weights of {weights}" if weights else ""
    training += f"; frozen: {', '.join(frozen)}" if frozen else ""
    lines = [
        f"- network: {facts['network']}",
        f"- mechanism: {facts['mechanism']}",
        f"- parameters: {sum(facts['parameters'].values()) / 1e6:.2f} M",
        f"- training: {training}",
        "",
        *_table(run),
    ]
    return "\n".join(lines) + "\n"


def _table(run: Run) -> list[str]:
    """Return a table with a row for each task: source and number of its labels, and its main metric."""
    final = Method("final map", [run])
    initial = final.initial()
    methods = {"final map": final} | ({} if initial is None else {"initial map": initial})
    labels = {task: _labels(run, task) for task in run.primary}
    columns = ["task", *(["training labels"] if any(labels.values()) else []), "metric", *methods]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in metric_rows(methods):
        if row.primary:
            unit = f" ({row.unit})" if row.unit else ""
            metric = f"{row.metric}{unit} {'↑' if row.higher_is_better else '↓'}"
            cells = [row.task, *([labels[row.task]] if any(labels.values()) else []), metric]
            cells += [text_of(row.values[label]) if label in row.values else "" for label in methods]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _labels(run: Run, task: str) -> str:
    """Return the number of training images with a label, and the sources of these images; "" if unknown."""
    if run.labels is None or task not in run.labels.tasks:
        return ""
    ids = [id for id, on in zip(run.labels.ids, run.labels.column(task), strict=True) if on]
    several = run.setting("data", "sources")  # with sources, ids are `source/id`
    sources = dict.fromkeys(source_of(id) for id in ids) if several else {}
    return f"{len(ids):,}" + (f" ({', '.join(sources)})" if sources else "")
