"""`dmtl demo`: train and compare on the embedded data set, in a few minutes on two CPU cores."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dmtl.cli._arguments import parse
from dmtl.cli._common import console, metric_table, say
from dmtl.cli._progress import Relay, TrainingProgress, progress
from dmtl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dmtl.data import LabelledImages
    from dmtl.models import DiffusionMTL, MultiTaskBaseline
    from dmtl.train.config import RunConfig

SAMPLES = 4  # validation images with predictions
RUNS: dict[str, tuple[str, Literal["none"] | None]] = {
    "mtl": ("MTL", "none"),
    "diffusion": ("DiffusionMTL", None),
}
"""Folder -> the run's name, and the model's form of diffusion if it is not the recipe's."""


@dataclass(frozen=True)
class Demo:
    """Learn six tasks from rendered images with one label each, compare the result with the plain multi-task
    baseline, and write a report.

    Trains both models (at the same time, with one thread each, if the machine has several cores), predicts a
    few images, and writes OUT/report.html.
    """

    out: str = "runs/demo"
    """Folder to write."""
    steps: int | None = None
    """Training steps of each model; default: 400."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace an earlier demo in OUT."""


def main(arguments: list[str]) -> int:
    args = parse(Demo, arguments, "demo")
    from dmtl.models import from_pretrained, how_to_get, pretrained_source
    from dmtl.runtime.devices import pick_device, usable_cores
    from dmtl.train.presets import demo_config
    from dmtl.train.setup import open_data
    from dmtl.train.trainer import RunStopped

    base = demo_config()
    steps = base.optim.steps if args.steps is None else args.steps
    optim = dataclasses.replace(base.optim, seed=args.seed, steps=steps)
    base = dataclasses.replace(base, device=args.device, optim=optim)
    device = pick_device(args.device)  # fail before anything is written
    out = _prepare(args)
    if pretrained_source(base.model.backbone) is None:
        say(f"the encoder starts from random weights; for better maps: {how_to_get(base.model.backbone)}")
    try:
        failed = _train(base, out, 1 if device.type == "cuda" else min(len(RUNS), usable_cores()))
    except RunStopped as stopped:
        print(f"dmtl demo: {stopped}", file=sys.stderr)
        return stopped.status
    if failed:
        raise ConfigError("; ".join(failed))
    from dmtl.report.html.report import write_page
    from dmtl.report.runs.comparison import compare

    labels = [label for label, _ in RUNS.values()]
    comparison = compare([out / "diffusion"], [out / "mtl"], labels)
    model = from_pretrained(out / "diffusion").to(device)
    data = open_data(base.data, base.optim.task_weights)
    _predict_samples(model, device, data.val, out)
    page = write_page(out / "report.html", comparison, train_set=data.train, val_set=data.val, device=device)
    console.print(metric_table(comparison.methods, deltas=comparison.deltas))
    say("Delta_MTL: the mean gain over the baseline (one seed, equal steps)")
    say(f"report: {page}")
    return 0


def _prepare(args: Demo) -> Path:
    """Create the folder; refuse one that holds anything but an earlier demo to overwrite."""
    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        if not args.overwrite or not (out / "demo").is_file():
            raise ConfigError(f"{out} exists; choose another --out, or --overwrite an earlier demo")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo").touch()  # marks a folder that --overwrite may replace
    return out


def _train(base: RunConfig, out: Path, processes: int) -> list[str]:
    """Train both models and return what failed."""
    from dmtl.train.jobs import Job, run_jobs

    def job(name: str) -> Job:
        label, diffusion = RUNS[name]
        model = dataclasses.replace(base.model, diffusion=diffusion or base.model.diffusion)
        config = dataclasses.replace(base, out=str(out / name), model=model)
        return Job(label, out / name, (), lambda: config)

    jobs = list(map(job, RUNS))
    if not console.file.isatty():
        return run_jobs(jobs, processes, say, on_wait=Relay({str(job.out): job.log for job in jobs}))
    with _bars(base.optim.steps, out) as look:
        return run_jobs(jobs, processes, on_wait=look)


@contextmanager
def _bars(steps: int, out: Path) -> Iterator:
    """Yield a function that updates a bar for each run from its log."""
    from dmtl.train.log import RunLog

    with progress() as new_bar:
        bars = {
            out / name / "log.jsonl": TrainingProgress(new_bar(f"{label:12}"))
            for name, (label, _) in RUNS.items()
        }

        def look() -> None:
            for log, shown in bars.items():
                if rows := [row for row in RunLog.read(log) if row["event"] == "train"]:
                    shown.on_step(rows[-1]["step"], steps, rows[-1]["loss"])

        yield look
        look()


def _predict_samples(
    model: DiffusionMTL | MultiTaskBaseline,
    device: torch.device,
    val: LabelledImages,
    out: Path,
) -> None:
    """Write a few validation images and their `dmtl predict` output."""
    from PIL import Image

    from dmtl.predict.predictor import Predictor

    folder = out / "images"
    folder.mkdir()
    for index in range(SAMPLES):
        sample = val.read(index, [])
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / f"{index:04}.png")
    say(Predictor(model, device).predict_files([folder], out / "predictions"))
