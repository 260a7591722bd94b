"""`dmtl eval`: metrics of a trained model, or of saved maps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, final_and_initial, metric_table
from dmtl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dmtl.runtime.distributed import World


@dataclass(frozen=True)
class Eval:
    """Score a model on a data set, or maps that any program wrote, and print every metric.

    The published protocol in one command: `dmtl eval official.pth.tar --data DATA --published`

    Shared by several processes or GPUs, with the same figures: `torchrun --nproc-per-node 8 -m dmtl eval ...`
    """

    model: Annotated[str | None, *positional("MODEL")] = None
    """A run's folder, a folder with config.json and model.safetensors, or a published file (.pth.tar)."""
    data: str = "scenes"
    """"scenes", a folder with dataset.yaml, or a benchmark as it is distributed."""
    split: str = "val"
    """Which split."""
    size: tuple[int, int] | None = None
    """Height and width to which images and labels are resized; default: as they are (scenes: 128 128)."""
    count: int | None = None
    """At most so many images."""
    ids: str | None = None
    """File with the images to score, one id per line; default: all."""
    tasks: list[str] | None = None
    """Tasks to score; default: all that model and data share."""
    published: tyro.conf.FlagCreatePairsOff[bool] = False
    """As published: frame and max_dist as the data set says, boundaries by "seism", fp32; other options
    win over it."""
    frame: tuple[int, int] | None = None
    """Height and width to which images are padded on all sides; default: each at its own size."""
    boundaries: Literal["seism", "raw"] | None = None
    """Also score the task called edge by odsF, oisF and AP: "seism" (as published) or "raw" (without
    non-maximum suppression)."""
    max_dist: float | None = None
    """How far boundaries may be apart, as a share of the image's diagonal; default: as the data set says,
    else 0.0075."""
    boundary_ids: str | None = None
    """File with the images whose boundaries are scored, one id per line; default: all."""
    save_maps: str | None = None
    """Folder to write all maps to, without padding: class ids and probabilities as PNG, others as .npy."""
    float_maps: tyro.conf.FlagCreatePairsOff[bool] = False
    """Save probabilities as float32 .npy instead of 8-bit PNG."""
    from_maps: str | None = None
    """Score the maps in this folder (<task>/<id>.png or .npy) instead of a model."""
    baseline: list[str] | None = None
    """Runs (or JSON files of this command) to tell Delta_MTL against; single-task runs count together."""
    per_class: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also print the IoU of every class."""
    steps: list[str] | None = None
    """Denoising steps, or "auto" (until a step changes little); default: as trained. Several: a table of
    metrics and time for each."""
    sampler: str | None = None
    """How the chain steps: "ancestral", "ddim", "dpmpp_2m" or a registered one; default: as trained."""
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
    """Also write all figures, per class too, and the protocol to this file."""


def main(arguments: list[str]) -> int:
    args = parse(Eval, arguments, "eval")
    from dmtl.cli import _eval_protocol as protocols
    from dmtl.cli import _eval_tables as tables
    from dmtl.data import open_dataset
    from dmtl.evaluation.evaluate import primary_metrics
    from dmtl.runtime.distributed import connect
    from dmtl.runtime.files import write_text

    protocols.check_options(args)
    several = _steps(args.steps)
    reference = tables.read_baseline(args.baseline) if args.baseline else None
    world = connect(args.device)
    engine = None if args.model is None else _engine(args, world.device)
    dataset = open_dataset(args.data, args.split, size=args.size, count=args.count)
    names = protocols.shared_tasks(args, None if engine is None else engine.tasks, dataset.tasks)
    loader = protocols.loader_of(args, dataset, names)
    protocol, boundaries = protocols.protocol_of(args, loader)
    source = protocols.saved_maps(args, loader) if engine is None else engine
    tasks = {name: dataset.tasks[name] for name in names}
    if reference is not None:
        tables.check_baseline(reference, protocol.primary(tasks))

    rows = _scored(args, source, loader, several, tasks, boundaries, protocol, world)
    if not world.main:
        return 0
    metrics = rows[0]["metrics"]
    primary = primary_metrics(metrics, tasks)
    compared = {} if reference is None else tables.against(metrics, primary, reference)
    title = f"{args.model or args.from_maps} on {protocol}"
    if len(rows) == 1:
        meaning = tables.notes(tasks, boundaries)
        console.print(metric_table(title, final_and_initial(metrics), primary, meaning))
    else:
        console.print(tables.steps_table(title, rows, primary))
    if args.per_class:
        for name in (name for name, task in tasks.items() if task.kind == "classes"):
            console.print(tables.class_table(name, metrics[name]))
    if compared:
        console.print(tables.baseline_table(primary, compared))
    if args.json:
        write_text(args.json, tables.figures_file(rows, primary, protocol.to_json(), compared))
    return 0


def _engine(args: Eval, device: torch.device) -> Any:
    from dmtl.cli._eval_protocol import trained_model
    from dmtl.engine.engine import Engine

    precision = "fp32" if args.published and args.precision == "auto" else args.precision
    model = trained_model(args.model).to(device)
    return Engine(model, precision=precision, sampler=args.sampler, samples=args.samples, inplace=True)


def _scored(args: Eval, source, loader, several, tasks, boundaries, protocol, world: World) -> list[dict]:
    """Metrics and time for each number of steps; the maps are saved where they are asked for."""
    from rich.progress import track

    from dmtl.evaluation.evaluate import evaluate
    from dmtl.evaluation.saved_maps import MapWriter
    from dmtl.runtime.distributed import gathered

    options: dict[str, Any] = dict(tasks=tasks, seed=args.seed, boundaries=boundaries, world=world)
    if args.from_maps is None:
        one = args.samples == 1 and len(several) == 1
        options["initial"] = one and source.config.diffusion != "none"
    writer = None
    if args.save_maps is not None:
        about = {"model": args.model, **protocol.to_json()}
        writer = MapWriter(args.save_maps, tasks, about, floats=args.float_maps)
        options["on_maps"] = writer.add
    rows = []
    try:
        for steps in several:
            timed = Timed(source) if len(several) > 1 else source
            batches = loader
            if world.size == 1:
                batches = track(loader, total=len(loader), description="scoring", console=console)
            rows.append({"steps": steps, "metrics": evaluate(timed, batches, steps=steps, **options)})
            if len(several) > 1:
                rows[-1]["ms_per_image"] = 1e3 * timed.seconds / protocol.images
                rows[-1] |= {"steps_taken": timed.taken / max(timed.calls, 1)} if steps == "auto" else {}
    finally:  # also after Ctrl-C: what is there is described
        if writer is not None:
            writer.write_index()
    if writer is not None and world.size > 1:
        writer.images = [image for images in gathered(writer.images) for image in images]
        if world.main:
            writer.write_index()
    return rows


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


def _steps(words: list[str] | None) -> list[int | str | None]:
    for word in words or []:
        if word != "auto" and not (word.isdigit() and int(word) > 0):
            raise ConfigError(f'steps must be numbers from 1 or "auto", got {word!r}')
    return [word if word == "auto" else int(word) for word in words or []] or [None]
