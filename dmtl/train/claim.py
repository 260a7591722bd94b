"""The paper's claim, measured: DiffusionMTL beside the plain multi-task baseline on the same labels.

Every seed trains three models from one configuration: DiffusionMTL for N steps; the baseline for N steps
(equal steps); and the baseline for as many steps as fit into DiffusionMTL's training time (equal time),
each with its own full learning-rate schedule. Initialisation, order, augmentation and noise follow the
seed; data and labels do not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dmtl.data import Cached
from dmtl.errors import ConfigError
from dmtl.files import write_text
from dmtl.metrics.delta import delta_mtl
from dmtl.tasks import Task
from dmtl.train.config import RunConfig
from dmtl.train.optim import total_steps
from dmtl.train.setup import Data, open_data, training_loader
from dmtl.train.trainer import Trainer

METHODS = ("diffusion", "mtl", "mtl_equal_time")

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Run:
    """One finished run: its figures, steps and seconds of training."""

    seed: int
    method: str
    out: str
    steps: int
    seconds: float
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Claim:
    """All runs, and DiffusionMTL's Delta_MTL in percent against the baseline, one value per seed."""

    runs: list[Run]
    delta_equal_steps: list[float]
    delta_equal_time: list[float]

    def of(self, method: str) -> list[Run]:
        """The runs of one of METHODS, in the order of the seeds."""
        return [run for run in self.runs if run.method == method]


def run_claim(config: RunConfig, seeds: Iterable[int], progress: Callable[[str], object]) -> Claim:
    """Trains everything below `config.out`, writes `claim.json` there, and returns the figures.

    Args:
        config: of DiffusionMTL; the baseline is the same with `model.diffusion = "none"`.
        progress: `progress(label)` is a context manager that yields the trainer's `on_step`.
    """
    if config.model.diffusion == "none":
        raise ConfigError(
            'model.diffusion must be "feature" or "prediction" to be compared with the baseline, got "none"'
        )
    data = open_data(config.data, config.optim.task_weights)
    if isinstance(data.train, Cached):
        data.train.warm(data.labels)  # else the first run alone would pay for reading or rendering
    planned = total_steps(config.optim, len(training_loader(config, data)))
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=planned, epochs=0))
    runs: list[Run] = []
    by_steps, by_time = [], []
    for seed in seeds:
        ours, tasks = _train(config, data, seed, "diffusion", config.optim.steps, progress)
        equal_steps, _ = _train(config, data, seed, "mtl", config.optim.steps, progress)
        steps = max(config.optim.steps, round(config.optim.steps * ours.seconds / equal_steps.seconds))
        equal_time, _ = _train(config, data, seed, "mtl_equal_time", steps, progress)
        runs += [ours, equal_steps, equal_time]
        by_steps.append(delta_mtl(ours.metrics, equal_steps.metrics, tasks))
        by_time.append(delta_mtl(ours.metrics, equal_time.metrics, tasks))
        claim = Claim(runs, by_steps, by_time)
        write_text(Path(config.out) / "claim.json", json.dumps(dataclasses.asdict(claim), indent=2) + "\n")
    return claim


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _train(
    config: RunConfig,
    data: Data,
    seed: int,
    method: str,
    steps: int,
    progress: Callable[[str], object],
) -> tuple[Run, dict[str, Task]]:
    out = Path(config.out) / f"seed{seed}" / method
    model = config.model if method == "diffusion" else dataclasses.replace(config.model, diffusion="none")
    # a longer run has a longer warm-up, so that its schedule keeps its shape
    warmup = round(config.optim.warmup * steps / config.optim.steps)
    optim = dataclasses.replace(config.optim, seed=seed, steps=steps, warmup=warmup)
    with progress(f"seed {seed}: {method}") as on_step:
        run = dataclasses.replace(config, out=str(out), model=model, optim=optim)
        trainer = Trainer(run, data=data, resume=True, on_step=on_step)
        on_step(trainer.step, steps, math.nan)
        metrics = trainer.run()
    return Run(seed, method, str(out), trainer.step, trainer.seconds, metrics), trainer.model.tasks
