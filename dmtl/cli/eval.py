"""`dmtl eval`: metrics of a trained model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated

from rich.table import Table
from rich.text import Text

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
    steps: list[str] | None = None
    """Denoising steps, or "auto" (until a step changes little); default: as trained. Several: a table of
    metrics and time for each."""
    samples: int = 1
    """Draws of the noise that are averaged; from 2 on with the AUROC of errors by uncertainty."""
    precision: str = "auto"
    """"fp32", "bf16", or on a GPU also "fp16" and "tf32"; default: fp32 on a CPU, bf16 on a GPU."""
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
    from dmtl.files import write_text
    from dmtl.infer.engine import Engine
    from dmtl.models import load_model
    from dmtl.train.evaluate import evaluate, primary_metrics

    several = _steps(args.steps)
    model = load_model(model_folder(args.model)).to(pick_device(args.device))
    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    names = shared_tasks(args, model.tasks, dataset.tasks)
    engine = Engine(model, precision=args.precision, samples=args.samples, inplace=True)
    loader = make_loader(dataset, tasks=names, batch_size=args.batch_size, shuffle=False)
    initial = engine.config.diffusion != "none" and args.samples == 1 and len(several) == 1
    rows = []
    for steps in several:
        timed = Timed(engine)
        batches = track(loader, total=len(loader), description="scoring", console=console)
        metrics = evaluate(timed, batches, tasks=names, steps=steps, seed=args.seed, initial=initial)
        rows.append({"steps": steps, "metrics": metrics, "ms_per_image": 1e3 * timed.seconds / len(dataset)})
        rows[-1] |= {"steps_taken": timed.taken / max(timed.calls, 1)} if steps == "auto" else {}
    metrics = rows[0]["metrics"]
    primary = primary_metrics(metrics, engine.tasks)
    title = f"{args.model} on {args.data} ({args.split}, {len(dataset)} images)"
    if len(rows) == 1:
        console.print(metric_table(title, final_and_initial(metrics), primary))
    else:
        console.print(steps_table(title, rows, primary))
    if args.json:
        found = {"metrics": metrics, "primary": primary} if len(rows) == 1 else {"steps": rows}
        write_text(args.json, json.dumps(found, indent=2) + "\n")
    return 0


def shared_tasks(args: Eval, ours: dict, theirs: dict) -> list[str]:
    """The tasks to score: those asked for, or all that the model and the data set have both."""
    from dmtl.errors import ConfigError

    names = args.tasks or [t for t in ours if t in theirs]
    for name in names:
        for where, tasks in ((args.model, ours), (args.data, theirs)):
            if name not in tasks:
                raise ConfigError(f"tasks: {where} has no task {name!r} (it has {', '.join(tasks)})")
        check_same_kind(name, ours[name], theirs[name])
    if not names:
        both = f"{', '.join(ours)} and {', '.join(theirs)}"
        raise ConfigError(f"{args.model} and {args.data} share no task ({both})")
    return names


class Timed:
    """An engine with a clock: seconds in its calls after the first one (which may compile and measure)."""

    def __init__(self, engine):
        self.engine, self.tasks, self.device = engine, engine.tasks, engine.device
        self.seconds, self.calls, self.taken = 0.0, 0, 0

    def maps(self, image, tasks, **options):
        out = self._timed(self.engine.maps, image, tasks, options)
        self.taken += out.steps
        return out

    def __call__(self, image, tasks, **options):
        return self._timed(self.engine, image, tasks, options)

    def _timed(self, call, image, tasks, options):
        if not self.calls:
            call(image, tasks, **options)
        self._wait()
        started = time.perf_counter()
        out = call(image, tasks, **options)
        self._wait()
        self.seconds += time.perf_counter() - started
        self.calls += 1
        return out

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def steps_table(title: str, rows: list[dict], primary: dict) -> Table:
    """Time and every task's main metric for each number of steps; Delta against the first row."""
    from dmtl.metrics import delta_mtl

    table = Table(title=Text(title), title_justify="left")
    for column in (
        "steps",
        "ms/image",
        *(f"{t} {m} {'↑' if up else '↓'}" for t, (m, _, up) in primary.items()),
    ):
        table.add_column(column, justify="right")
    table.add_column("Delta %", justify="right")
    tasks = [SimpleNamespace(name=t, primary=m, higher_is_better=up) for t, (m, _, up) in primary.items()]
    for row in rows:
        steps = (
            f"auto ({row['steps_taken']:.1f})"
            if row["steps"] == "auto"
            else str(row["steps"] or "as trained")
        )
        values = [f"{row['metrics'][t.name][t.primary]:.4g}" for t in tasks]
        delta = f"{delta_mtl(row['metrics'], rows[0]['metrics'], tasks):+.2f}" if row is not rows[0] else ""
        table.add_row(steps, f"{row['ms_per_image']:.1f}", *values, delta)
    return table


def _steps(words: list[str] | None) -> list[int | str | None]:
    from dmtl.errors import ConfigError

    for word in words or []:
        if word != "auto" and not (word.isdigit() and int(word) > 0):
            raise ConfigError(f'steps must be numbers from 1 or "auto", got {word!r}')
    return [word if word == "auto" else int(word) for word in words or []] or [None]


def check_same_kind(name: str, ours, theirs) -> None:
    """A model's task and a data set's task of the same name must mean the same thing."""
    from dmtl.errors import ConfigError

    if (ours.kind, ours.channels) != (theirs.kind, theirs.channels):
        raise ConfigError(
            f"task {name!r}: the model predicts {ours.kind} with {ours.channels} channels, "
            f"the data set has {theirs.kind} with {theirs.channels}"
        )
