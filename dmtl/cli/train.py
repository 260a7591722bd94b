"""`dmtl train`: run a training from a TOML file and options."""

from __future__ import annotations

import dataclasses
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, TypeVar

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, final_and_initial, metric_table, say, source_table
from dmtl.cli._progress import STEPS, TrainingProgress, progress
from dmtl.data import made_to_order
from dmtl.errors import ConfigError
from dmtl.train.config import DataConfig, RunConfig
from dmtl.train.presets import recipe
from dmtl.train.toml import read_config


@dataclass(frozen=True)
class FromFile(RunConfig):
    """Options that start with a file."""

    config: Annotated[str | None, *positional("[CONFIG]")] = None
    """A TOML file, as the first argument."""


T = TypeVar("T", bound=FromFile)


@dataclass(frozen=True)
class Train(FromFile):
    """Train a model. Settings come from CONFIG (TOML); options on the command line override them. Without
    CONFIG, training uses the recipe for small data sets.

    Writes into OUT: config.toml (resolved), labels.csv, log.jsonl, checkpoints/, best/, model/, metrics.json.
    With torchrun, all processes train together.
    """

    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Resume from the last checkpoint in OUT, or start if there is none."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a summary and an estimate of time and memory; nothing is trained or written."""
    profile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write a trace of three steps and a table of their time to OUT/profile."""


def main(arguments: list[str]) -> int:
    args, config = parse_run(Train, arguments, "train")
    if args.dry_run:
        from dmtl.cli._plan import dry_run

        return dry_run(config)
    from dmtl.train.trainer import RunStopped, Trainer

    trainer = Trainer(config, resume=args.resume, say=say, profile=args.profile)
    if trainer.step:
        trainer.say(f"resumed at step {trainer.step}")
    with progress() if trainer.world.main else nullcontext() as new_bar:
        if new_bar is not None:
            shown = TrainingProgress(new_bar(config.out, STEPS), trainer.model.tasks)
            trainer.on_step, trainer.on_eval = shown.on_step, shown.on_eval
        trainer.on_step(trainer.step, trainer.steps, math.nan)
        try:
            metrics = trainer.fit()
        except RunStopped as stopped:
            print(f"dmtl train: {stopped}", file=sys.stderr)
            return stopped.status
    if not trainer.world.main:
        return 0
    from dmtl.evaluation.scoring import primary_metrics

    primary = primary_metrics(metrics, trainer.model.tasks)
    methods = final_and_initial(metrics, primary)
    console.print(metric_table(methods, f"{config.out}: {trainer.step} steps"))
    if trainer.sources:
        console.print(source_table(trainer.sources, metrics, primary))
    say(f"model: {trainer.out / 'model'}")
    return 0


def parse_run(kind: type[T], arguments: list[str], command: str) -> tuple[T, RunConfig]:
    """Return the arguments as `kind`, and the run's configuration: the file that comes first, or the recipe,
    with the options over it."""
    named = bool(arguments) and not arguments[0].startswith("-")
    base = read_config(arguments[0]) if named else recipe()
    names = [f.name for f in dataclasses.fields(RunConfig)]
    values = {name: getattr(base, name) for name in names}
    default = kind(config=arguments[0], **values) if named else kind(**values)
    args = parse(kind, arguments, command, default=default)
    if args.config is not None and args.config != arguments[0]:
        raise ConfigError(f"CONFIG must come first, got {args.config} after {arguments[0]}")
    config = RunConfig(**{name: getattr(args, name) for name in names})
    _check_counts(base.data, config.data)
    if not named:
        return args, config
    # tables merge as `extends` merges them
    below, optim = base.optim, config.optim
    merged = {key: getattr(below, key) | getattr(optim, key) for key in ("task_weights", "objectives")}
    return args, dataclasses.replace(config, optim=dataclasses.replace(optim, **merged))


def _check_counts(base: DataConfig, data: DataConfig) -> None:
    """Raise ConfigError if an option changes the number of images of data that is not rendered."""
    roots = [source.root for source in data.sources] or [data.root]
    if any(map(made_to_order, roots)):
        return
    for key, split in (("train_count", "train"), ("val_count", "val")):
        if getattr(data, key) != getattr(base, key):
            raise ConfigError(
                f"--data.{key.replace('_', '-')} is only for rendered images such as scenes, got "
                f"{', '.join(roots)}; to use fewer images, list fewer in splits/{split}.txt"
            )
