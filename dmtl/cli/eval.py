"""`dmtl eval`: metrics of a trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, final_and_initial, metric_table, model_folder


@dataclass(frozen=True)
class Eval:
    """Score a model on a data set and print every metric."""

    model: Annotated[str, *positional("MODEL")]
    """A run's folder, or a folder with config.json and model.safetensors."""
    data: str = "scenes"
    """"scenes" or a folder with dataset.yaml."""
    split: str = "val"
    """Which split."""
    size: tuple[int, int] | None = None
    """Height and width to which images and labels are resized; default: as they are (scenes: 128 128)."""
    count: int | None = None
    """At most so many images."""
    tasks: list[str] | None = None
    """Tasks to score; default: all that model and data share."""
    steps: int | None = None
    """Denoising steps; default: as trained."""
    batch_size: int = 8
    """Images at once."""
    seed: int = 0
    """Seed of the chain's noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    json: str | None = None
    """Also write all figures, per class too, to this file."""


def main(arguments: list[str]) -> int:
    args = parse(Eval, arguments, "eval")
    from rich.progress import track

    from dmtl.data import make_loader, open_dataset
    from dmtl.devices import pick_device
    from dmtl.errors import ConfigError
    from dmtl.files import write_text
    from dmtl.models import DiffusionMTL, load_model
    from dmtl.train.evaluate import evaluate, primary_metrics

    model = load_model(model_folder(args.model)).to(pick_device(args.device))
    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    names = args.tasks or [t for t in model.tasks if t in dataset.tasks]
    for name in names:
        for where, tasks in ((args.model, model.tasks), (args.data, dataset.tasks)):
            if name not in tasks:
                raise ConfigError(f"tasks: {where} has no task {name!r} (it has {', '.join(tasks)})")
        check_same_kind(name, model.tasks[name], dataset.tasks[name])
    if not names:
        raise ConfigError(
            f"{args.model} and {args.data} share no task "
            f"({', '.join(model.tasks)} and {', '.join(dataset.tasks)})"
        )
    loader = make_loader(dataset, tasks=names, batch_size=args.batch_size, shuffle=False)
    batches = track(loader, total=len(loader), description="scoring", console=console)
    metrics = evaluate(
        model, batches, tasks=names, steps=args.steps, seed=args.seed, initial=isinstance(model, DiffusionMTL)
    )
    primary = primary_metrics(metrics, model.tasks)
    console.print(
        metric_table(
            f"{args.model} on {args.data} ({args.split}, {len(dataset)} images)",
            final_and_initial(metrics),
            primary,
        )
    )
    if args.json:
        write_text(args.json, json.dumps({"metrics": metrics, "primary": primary}, indent=2) + "\n")
    return 0


def check_same_kind(name: str, ours, theirs) -> None:
    """A model's task and a data set's task of the same name must mean the same thing."""
    from dmtl.errors import ConfigError

    if (ours.kind, ours.channels) != (theirs.kind, theirs.channels):
        raise ConfigError(
            f"task {name!r}: the model predicts {ours.kind} with {ours.channels} channels, "
            f"the data set has {theirs.kind} with {theirs.channels}"
        )
