"""`dmtl eval`: metrics of a trained model, or of saved maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from dmtl.cli._arguments import MODEL, check_at_least, check_json, naming_options, parse
from dmtl.cli._common import console, final_and_initial, metric_table, say, source_table, table_of
from dmtl.cli._progress import bar
from dmtl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from dmtl.engine import Engine
    from dmtl.evaluation.protocol import Evaluation
    from dmtl.runtime.distributed import World


@dataclass(frozen=True)
class Eval:
    """Score a model, or maps written by any program, on a data set and print every metric.

    For the published protocol: `dmtl eval official.pth.tar --data DATA --published`

    On several processes or GPUs, with the same result: `torchrun --nproc-per-node 8 -m dmtl eval ...`
    """

    model: Annotated[str | None, *MODEL] = None
    data: str | None = None
    """"scenes", a folder with dataset.yaml, shards, a benchmark as distributed, or a configuration (.toml)
    with [[data.sources]]; default: the data that the run MODEL was trained on."""
    split: str = "val"
    """Split to evaluate."""
    size: tuple[int, int] | None = None
    """Height and width to resize images and labels to; default: do not resize (scenes: 128 128, or as
    in the run)."""
    count: int | None = None
    """Maximum number of images."""
    ids: str | None = None
    """File with the images to score, one id per line; default: all."""
    tasks: list[str] | None = None
    """Tasks to score; default: all that the model and the data share."""
    published: tyro.conf.FlagCreatePairsOff[bool] = False
    """Follow the published protocol: frame and max_dist as given by the data set, boundaries by "seism",
    fp32; other options override these settings."""
    frame: tuple[int, int] | None = None
    """Height and width to pad images to, on all sides; default: no padding."""
    boundaries: Literal["seism", "raw"] | None = None
    """Also score thin tasks, such as edge, by odsF, oisF and AP: "seism" (as published) or "raw" (without
    non-maximum suppression)."""
    max_dist: float | None = None
    """Maximum distance of matched boundaries, as a share of the image's diagonal; default: as given by the
    data set, else 0.0075."""
    boundary_ids: str | None = None
    """File with the ids of images to score boundaries of, one per line; default: all."""
    save_maps: str | None = None
    """Folder for all maps (padding removed). Class ids and probabilities are PNG, others .npy."""
    float_maps: tyro.conf.FlagCreatePairsOff[bool] = False
    """Save probabilities as float32 .npy instead of 8-bit PNG."""
    from_maps: str | None = None
    """Score the maps in this folder (<task>/<id>.png or .npy) instead of a model."""
    baseline: list[str] | None = None
    """Baseline runs (or their `--json` output) for Delta_MTL; several single-task runs are combined."""
    per_class: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also print the IoU of every class."""
    steps: list[str] | None = None
    """Denoising steps, or "auto" (until a step changes little); default: as trained. With several values,
    print a table of metrics and time for each."""
    sampler: str | None = None
    """Sampler: "ancestral", "ddim", "dpmpp_2m" or a registered one; default: as trained."""
    samples: int = 1
    """Noise samples to average; with 2 or more, also print the AUROC with which uncertainty finds errors."""
    precision: str = "auto"
    """"fp32", "bf16", or on a GPU also "fp16" and "tf32"; "auto" is fp32 on a CPU and bf16 on a GPU."""
    downscale: int | None = None
    """Factor by which images are downscaled for the network; default: a factor that gives about the size of
    the training images. Maps keep the image's size and are scored at that size."""
    batch_size: int = 8
    """Batch size."""
    seed: int = 0
    """Seed of the chain's noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    json: str | None = None
    """Also write all metrics, including per class, and the protocol to this file."""


def main(arguments: list[str]) -> int:
    args = parse(Eval, arguments, "eval")
    check_at_least(args, size=1, count=1, frame=1, batch_size=1)
    check_json(args.json)
    from dmtl.data import open_dataset
    from dmtl.data.folder.paths import read_ids
    from dmtl.evaluation.baseline import check_baseline, compare_with_baseline, read_baseline
    from dmtl.evaluation.protocol import Evaluation, Protocol, shared_tasks
    from dmtl.evaluation.saved_maps import SavedMaps, saved_tasks
    from dmtl.evaluation.scoring import primary_metrics
    from dmtl.runtime.distributed import connect
    from dmtl.runtime.files import write_json

    source = _checked_source(args)
    several = _steps(args.steps)
    asked = {"frame": args.frame, "boundaries": args.boundaries, "max_dist": args.max_dist}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    Protocol(**given)  # invalid settings fail before anything is loaded
    reference = read_baseline(args.baseline) if args.baseline else None
    world = connect(args.device)
    engine = None if args.model is None else _engine(args, args.model, world.device)
    data, size, count = _data(args, source)
    if world.main and args.data is None:
        say(f"data of {source}: {data}, split {args.split}")
    dataset = open_dataset(data, args.split, size=size, count=count)
    ours = saved_tasks(source, dataset.tasks) if engine is None else engine.tasks
    names = shared_tasks(ours, dataset.tasks, args.tasks, source=source, data=data)
    base = Protocol.published(dataset, names) if args.published else Protocol()
    if engine is None:
        base = dataclasses.replace(base, frame=None)  # saved maps have no padding
    listed, boundary_ids = (None if p is None else read_ids(p) for p in (args.ids, args.boundary_ids))
    protocol = dataclasses.replace(base, boundary_ids=boundary_ids, **given)
    options: dict[str, Any] = dict(ids=listed, batch_size=args.batch_size, data=data)
    evaluation = Evaluation(dataset, names, protocol, **options)
    if reference is not None:
        check_baseline(reference, evaluation.primary())

    saved = {name: ours[name] for name in names}
    scored = SavedMaps(source, saved, evaluation.needed) if engine is None else engine
    rows = _score(args, evaluation, scored, several, world)
    if not world.main:
        return 0
    metrics = rows[0]["metrics"]
    primary = primary_metrics(metrics, evaluation.tasks)
    compared = {} if reference is None else compare_with_baseline(metrics, primary, reference)
    if args.json:
        write_json(args.json, _contents(evaluation, rows, primary, compared))
    _print(f"{source} on {evaluation}", evaluation, rows, primary, compared, per_class=args.per_class)
    return 0


def _contents(evaluation: Evaluation, rows: list[dict], primary: Mapping[str, tuple], compared: dict) -> dict:
    """Return the content of --json."""
    first = rows[0]
    found = {"metrics": first["metrics"], "primary": primary} if len(rows) == 1 else {"steps": rows}
    if sources := first.get("sources"):
        found |= {"sources": sources}
    return found | {"protocol": evaluation.description, **compared}


def _print(
    title: str,
    evaluation: Evaluation,
    rows: list[dict],
    primary: Mapping[str, tuple],
    compared: dict,
    *,
    per_class: bool,
) -> None:
    """Print the tables of metrics."""
    metrics = rows[0]["metrics"]
    if len(rows) == 1:
        console.print(metric_table(final_and_initial(metrics, primary), title, evaluation.notes()))
        if sources := rows[0].get("sources"):
            console.print(source_table(sources, metrics, primary))
    else:
        console.print(_steps_table(title, rows, primary))
    for name in evaluation.tasks if per_class else ():
        each = [
            (m.removeprefix("IoU/"), f"{v:.2f}") for m, v in metrics[name].items() if m.startswith("IoU/")
        ]
        if each:
            console.print(table_of((f"{name} class", "IoU %"), each))
    if compared:
        console.print(_baseline_table(primary, compared))


def _checked_source(args: Eval) -> str:
    """Return what is scored, the model or the folder of maps; refuse contradictory options."""
    source = args.from_maps if args.model is None else args.model
    if source is None:
        raise ConfigError("pass either MODEL or --from-maps, got neither")
    if args.model is not None and args.from_maps is not None:
        raise ConfigError("pass either MODEL or --from-maps, not both")
    if args.from_maps is not None:
        given = {"frame": args.frame, "steps": args.steps, "samples": args.samples != 1}
        for option in (option for option, value in (given | {"save-maps": args.save_maps}).items() if value):
            raise ConfigError(f"--{option} needs a model, it cannot be used with --from-maps")
        if args.data is None:
            raise ConfigError("--from-maps needs --data, the data set to score the maps on")
    if args.save_maps is not None and args.steps and len(args.steps) > 1:
        raise ConfigError(f"--save-maps needs one number of --steps, got {len(args.steps)}")
    if args.float_maps and args.save_maps is None:
        raise ConfigError("--float-maps needs --save-maps")
    if not (args.boundaries or args.published):
        for option in ("max_dist", "boundary_ids"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} needs --boundaries or --published")
    return source


def _data(args: Eval, source: str) -> tuple[str, tuple[int, int] | None, int | None]:
    """Return the data set to score on, and the size and number of its images.

    Without --data, these are the run's: those that `dmtl train` evaluates on. RUN/model and RUN/best belong
    to their run.

    Raises:
        ConfigError: --data is missing, and the source is not a run, or the run's data are gone.
    """
    from dmtl.data import DATASETS, made_to_order
    from dmtl.data.shards.member import is_shards
    from dmtl.train.toml import read_config

    if args.data is not None:
        return args.data, args.size, args.count
    model = Path(source)
    run = model.parent if model.name in ("model", "best") else model
    path = run / "config.toml"
    for file in (path, run / "log.jsonl"):
        if not file.is_file():
            raise ConfigError(
                f"--data must name a data set, because {source} is not a run: it has no {file.name}"
            )
    own = read_config(path).data
    if own.sources:
        return str(path), args.size, args.count
    if made_to_order(own.root):
        count = own.train_count if args.split == "train" else own.val_count
        return own.root, args.size or own.size, count if args.count is None else args.count
    if not (own.root in DATASETS or is_shards(own.root) or Path(own.root).exists()):
        raise ConfigError(f"--data must name the data set: {path} has data.root = {own.root}, which is gone")
    return own.root, args.size, args.count


def _steps(words: list[str] | None) -> list[int | str | None]:
    for word in words or []:
        if word != "auto" and not (word.isdigit() and int(word) > 0):
            raise ConfigError(f'steps must be numbers from 1 or "auto", got {word!r}')
    return [word if word == "auto" else int(word) for word in words or []] or [None]


def _engine(args: Eval, model: str, device: torch.device) -> Engine:
    from dmtl.engine import Engine
    from dmtl.models import from_pretrained

    precision = "fp32" if args.published and args.precision == "auto" else args.precision
    options: dict[str, Any] = dict(
        sampler=args.sampler, samples=args.samples, downscale=args.downscale, inplace=True
    )
    with naming_options(args):
        return Engine(from_pretrained(model).to(device), precision=precision, **options)


def _score(
    args: Eval, evaluation: Evaluation, source: Any, several: Sequence[int | str | None], world: World
) -> list[dict]:
    """Return a row of metrics for each number of steps; save the maps if requested."""
    from dmtl.evaluation.saved_maps import MapWriter
    from dmtl.evaluation.steps import compare_steps

    watch = bar("scoring") if world.size == 1 else (lambda loader: loader)
    options: dict[str, Any] = dict(seed=args.seed, world=world)
    if len(several) > 1:
        return compare_steps(evaluation, source, several, watch, **options)
    options["initial"] = args.from_maps is None and args.samples == 1 and source.config.diffusion != "none"
    saving: AbstractContextManager[MapWriter | None] = nullcontext()
    if args.save_maps is not None:
        about = {"model": args.model, **evaluation.description}
        saving = MapWriter(args.save_maps, evaluation.tasks, about, floats=args.float_maps, world=world)
    with saving as writer:
        if writer is not None:
            options["on_maps"] = writer.add
        sources: dict = {}
        options["on_sources"] = sources.update
        metrics = evaluation.score(source, watch(evaluation.loader), steps=several[0], **options)
    return [{"steps": several[0], "metrics": metrics, "sources": sources}]


def _steps_table(title: str, rows: list[dict], primary: Mapping[str, tuple]) -> Table:
    """Time and every task's main metric for each number of steps; Delta against the first row, over the tasks
    that have one."""
    from dmtl.metrics.delta import judged
    from dmtl.report.runs.comparison import delta_between
    from dmtl.report.runs.values import text_of

    heads = (f"{t} {m} {'↑' if up else '↓'}" for t, (m, _, up) in primary.items())
    table = table_of(("steps", "ms/image", *heads, "Delta %"), title=title, left=0)
    tasks = judged(primary)
    for row in rows:
        steps = str(row["steps"] or "as trained")
        steps = f"auto ({row['steps_taken']:.1f})" if row["steps"] == "auto" else steps
        values = [text_of(row["metrics"][t.name][t.primary]) for t in tasks]
        found = delta_between({0: row["metrics"]}, {0: rows[0]["metrics"]}, tasks, partial=True)
        delta = text_of(found.value, 2, sign=True) if row is not rows[0] else ""
        table.add_row(steps, f"{row['ms_per_image']:.1f}", *values, delta)
    return table


def _baseline_table(primary: Mapping[str, tuple], found: Mapping) -> Table:
    """Tabulate every task's main metric, the baseline's, and Delta_MTL."""
    title = f"Delta_MTL against the baseline: {found['delta_mtl']:+.2f} %"
    rows = []
    for task, (metric, base, gain) in found["baseline"].items():
        _, value, up = primary[task]
        rows.append((task, f"{metric} {'↑' if up else '↓'}", f"{value:.4g}", f"{base:.4g}", f"{gain:+.2f}"))
    return table_of(("task", "metric", "value", "baseline", "gain %"), rows, title)
