"""`dmtl demo`: the main job on the embedded data set, in a few minutes on two CPU cores."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmtl.cli._arguments import parse
from dmtl.cli._common import console, metric_table, say, training_progress


@dataclass(frozen=True)
class Demo:
    """Learn six tasks from rendered images with one label each, compare with the plain multi-task baseline,
    write a report.

    Trains both models, predicts a few images, and writes OUT/report.html. Nothing is downloaded.
    """

    out: str = "runs/demo"
    """Folder to write."""
    steps: int | None = None
    """Training steps of each model; default: the demo's own number."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace an earlier demo in OUT."""


def main(arguments: list[str]) -> int:
    args = parse(Demo, arguments, "demo")
    from dmtl.devices import pick_device
    from dmtl.errors import ConfigError
    from dmtl.metrics import delta_mtl
    from dmtl.report.run import report_from_runs
    from dmtl.train.evaluate import primary_metrics
    from dmtl.train.presets import demo_config
    from dmtl.train.setup import open_data
    from dmtl.train.trainer import Trainer

    base = demo_config()
    steps = base.optim.steps if args.steps is None else args.steps
    optim = dataclasses.replace(base.optim, seed=args.seed, steps=steps)
    pick_device(args.device)  # before anything is written
    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        if not args.overwrite or not (out / "demo").is_file():
            raise ConfigError(f"{out} exists; choose another --out, or --overwrite an earlier demo")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo").touch()  # marks a folder that --overwrite may replace

    runs, data = {}, open_data(base.data, optim.task_weights)
    for name, label, model in (
        ("mtl", "MTL baseline", dataclasses.replace(base.model, diffusion="none")),
        ("diffusion", "DiffusionMTL", base.model),
    ):
        config = dataclasses.replace(base, out=str(out / name), device=args.device, model=model, optim=optim)
        trainer = Trainer(config, data=data)
        with training_progress(f"{label:12}") as trainer.on_step:
            runs[label] = trainer.run()
    console.print(metric_table("", runs, primary_metrics(runs["DiffusionMTL"], trainer.model.tasks)))
    gain = delta_mtl(runs["DiffusionMTL"], runs["MTL baseline"], trainer.model.tasks)
    console.print(
        f"Delta_MTL of DiffusionMTL against the MTL baseline: [bold]{gain:+.2f} %[/bold] "
        "(one seed, equal steps)"
    )

    _predict_samples(trainer, out)
    report = report_from_runs(
        out / "diffusion",
        out / "mtl",
        out / "report.html",
        train_set=data.train,
        val_set=data.val,
        device=trainer.device,
    )
    say(f"report: {report}")
    return 0


def _predict_samples(trainer, out: Path, count: int = 4) -> None:
    """Writes a few validation images and what `dmtl predict` makes of them."""
    from PIL import Image

    from dmtl.infer.predictor import Predictor

    folder = out / "images"
    folder.mkdir()
    for index in range(count):
        sample = trainer.data.val.read(index, [])
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / f"{index:04}.png")
    summary = Predictor(trainer.result, trainer.device).predict_files([folder], out / "predictions")
    say(summary)
