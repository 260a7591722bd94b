"""By which protocol `dmtl eval` scores: which images, in which frame, boundaries how; and what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmtl.cli._common import model_folder
from dmtl.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from dmtl.cli.eval import Eval
    from dmtl.data import LabelledImages, Loader
    from dmtl.evaluation.evaluate import Boundaries
    from dmtl.evaluation.saved_maps import SavedMaps
    from dmtl.models import DiffusionMTL, MultiTaskBaseline
    from dmtl.tasks import Task


@dataclass(frozen=True)
class Protocol:
    """What figures depend on, beside model and data.

    data, split, images   what was scored, and how many images
    frame                 (height, width) that images were padded to; None: each at its own size
    boundaries            "seism", "raw", or None: only pixel by pixel
    max_dist              of matched boundaries, as a share of the image's diagonal; None without boundaries
    boundary_images       how many images' boundaries were scored; None without boundaries
    """

    data: str
    split: str
    images: int
    frame: tuple[int, int] | None
    boundaries: str | None
    max_dist: float | None
    boundary_images: int | None

    def __str__(self) -> str:
        frame = "images at their own size" if self.frame is None else "frame {}x{}".format(*self.frame)
        text = f"{self.data} ({self.split}, {self.images} images; {frame}"
        if self.boundaries is not None:
            some = "" if self.boundary_images == self.images else f", {self.boundary_images} images"
            text += f"; boundaries: {self.boundaries}, max_dist {self.max_dist:g}{some}"
        return text + ")"

    def primary(self, tasks: Mapping[str, Task]) -> dict[str, str]:
        """task -> its main figure by this protocol."""
        from dmtl.evaluation.evaluate import Boundaries

        odsf = f"odsF_{self.boundaries}"
        scored = self.boundaries is not None
        return {n: odsf if scored and Boundaries.concern(t) else t.primary for n, t in tasks.items()}

    def to_json(self) -> dict[str, Any]:
        """For the file of figures."""
        return asdict(self)


def check_options(args: Eval) -> None:
    """ConfigError for options that contradict each other; DataError where the folder of maps is not there."""
    if args.model is None and args.from_maps is None:
        raise ConfigError("missing MODEL, or --from-maps in its place")
    if args.model is not None and args.from_maps is not None:
        raise ConfigError("--from-maps stands in the place of MODEL, expected one of them, got both")
    if args.from_maps is not None:
        given = {
            "--frame": args.frame,
            "--steps": args.steps,
            "--samples": args.samples != 1,
            "--save-maps": args.save_maps,
        }
        for option, value in given.items():
            if value:
                raise ConfigError(f"{option} concerns a model's prediction, expected none with --from-maps")
    if args.save_maps is not None and len(args.steps or []) > 1:
        raise ConfigError(f"--save-maps needs one number of --steps, got {len(args.steps)}")
    if args.float_maps and args.save_maps is None:
        raise ConfigError("--float-maps needs --save-maps")
    if args.max_dist is not None and not 0 < args.max_dist < 1:
        raise ConfigError(f"--max-dist must be between 0 and 1 (of the diagonal), got {args.max_dist:g}")
    if not (args.boundaries or args.published):
        for option in ("max_dist", "boundary_ids"):
            if getattr(args, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} needs --boundaries or --published")
    if args.from_maps is not None and not Path(args.from_maps).is_dir():
        raise DataError(f"{args.from_maps}: no such folder, expected one with a folder of maps for each task")


def trained_model(path: str) -> DiffusionMTL | MultiTaskBaseline:
    """From a run, a model folder, or a file in the published format (converted in memory)."""
    from dmtl.models import load_model
    from dmtl.models.published import model_from_official
    from dmtl.models.weights import read_state

    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such file or folder, expected a run, a model or a published file")
    if Path(path).is_file():
        return model_from_official(read_state(path), path)
    return load_model(model_folder(path))


def shared_tasks(args: Eval, ours: dict[str, Task] | None, theirs: dict[str, Task]) -> list[str]:
    """The tasks to score: those asked for, or all that the model (or the folder of maps) and the data set
    have both."""
    if ours is None:
        ours = {name: task for name, task in theirs.items() if (Path(args.from_maps) / name).is_dir()}
    source = args.model if args.from_maps is None else args.from_maps
    names = args.tasks or [t for t in ours if t in theirs]
    for name in names:
        for where, tasks in ((args.data, theirs), (source, ours)):
            if name not in tasks:
                raise ConfigError(
                    f"tasks: {where} has no task {name!r} (it has {', '.join(tasks) or 'none'})"
                )
        _check_same_kind(name, ours[name], theirs[name])
    if not names:
        both = f"{', '.join(ours) or 'none'} and {', '.join(theirs)}"
        raise ConfigError(f"{source} and {args.data} share no task ({both})")
    return names


def frame_of(args: Eval, dataset: LabelledImages) -> tuple[int, int] | None:
    """The frame to pad images to; saved maps have none any more."""
    told = dataset.evaluation.get("frame") if args.published and args.from_maps is None else None
    return args.frame or (None if told is None else tuple(told))


def loader_of(args: Eval, dataset: LabelledImages, names: list[str]) -> Loader:
    """Batches of the images to score. An image has the same place, hence the same noise, whatever others are
    scored beside it."""
    from dmtl.data import LabelMatrix, eval_transform, make_loader

    listed = _listed(args.ids, dataset)
    if listed is not None:
        labels = dataset.available()
        rows = [[id in listed] * len(labels.tasks) for id in labels.ids]
        listed = LabelMatrix(labels.ids, labels.tasks, labels.matrix & rows)
    return make_loader(
        dataset,
        listed,
        eval_transform(frame=frame_of(args, dataset)),
        batch_size=args.batch_size,
        shuffle=False,
        only_labelled=listed is not None,
        tasks=names,
    )


def protocol_of(args: Eval, loader: Loader) -> tuple[Protocol, Boundaries | None]:
    """The protocol, and how boundaries are scored by it."""
    from dmtl.evaluation.evaluate import Boundaries

    dataset, rows, visible = loader.dataset, loader.order(0), loader.visible
    edge = next((t for t in visible.tasks if Boundaries.concern(dataset.tasks[t])), None)
    if args.boundaries is not None and edge is None:
        raise ConfigError(
            f"--boundaries needs a task called edge among those scored, got {', '.join(visible.tasks)}"
        )
    kind = None if edge is None else args.boundaries or ("seism" if args.published else None)
    facts = dict(data=args.data, split=args.split, images=len(rows), frame=frame_of(args, dataset))
    if kind is None:
        return Protocol(**facts, boundaries=None, max_dist=None, boundary_images=None), None
    from dmtl.metrics.boundary import MAX_DIST, Boundary

    max_dist = args.max_dist or dataset.evaluation.get("max_dist", MAX_DIST)
    ids = _listed(args.boundary_ids, dataset)
    labelled = (dataset.ids[row] for row in rows[visible.column(edge)[rows]])
    count = sum(ids is None or id in ids for id in labelled)
    scored = Boundaries(
        lambda ignore: Boundary(protocol=kind, max_dist=max_dist, ignore=ignore), dataset.boundaries, ids
    )
    return Protocol(**facts, boundaries=kind, max_dist=max_dist, boundary_images=count), scored


def saved_maps(args: Eval, loader: Loader) -> SavedMaps:
    """The maps in the folder, one for every label that is scored."""
    from dmtl.evaluation.saved_maps import SavedMaps

    dataset, rows, visible = loader.dataset, loader.order(0), loader.visible
    needed = {task: [dataset.ids[row] for row in rows[visible.column(task)[rows]]] for task in visible.tasks}
    return SavedMaps(args.from_maps, {task: dataset.tasks[task] for task in visible.tasks}, needed)


def _listed(path: str | None, dataset: LabelledImages) -> set[str] | None:
    """The ids in a file, all of them the data set's; None for None."""
    from dmtl.data.folder.paths import read_ids

    if path is None:
        return None
    ids = set(read_ids(path))
    if unknown := sorted(ids - set(dataset.ids)):
        raise DataError(
            f"{path}: {len(unknown)} of {len(ids)} ids are unknown, the first is {unknown[0]!r}, "
            f"expected images of {dataset.name}, split {dataset.split!r}"
        )
    return ids


def _check_same_kind(name: str, ours: Task, theirs: Task) -> None:
    """A model's task and a data set's task of the same name must mean the same thing."""
    if (ours.kind, ours.channels) != (theirs.kind, theirs.channels):
        raise ConfigError(
            f"task {name!r}: the model predicts {ours.kind} with {ours.channels} channels, "
            f"the data set has {theirs.kind} with {theirs.channels}"
        )
