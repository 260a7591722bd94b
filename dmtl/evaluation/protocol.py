"""Score a model on a data set by a protocol: which images, in which frame, and boundaries how."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dmtl.data import Batch, LabelledImages, LabelMatrix, Loader, eval_transform, make_loader, open_dataset
from dmtl.engine.engine import Engine
from dmtl.errors import ConfigError, DataError, did_you_mean
from dmtl.evaluation.scoring import Boundaries, Metrics, converter, score
from dmtl.metrics.boundary import MAX_DIST, Boundary
from dmtl.models import DiffusionMTL, MultiTaskBaseline, from_pretrained
from dmtl.runtime.distributed import World
from dmtl.tasks import Task

PROTOCOLS = ("default", "published")
SUPPRESSIONS = ("seism", "raw")


@dataclass(frozen=True)
class Protocol:
    """How predictions are scored. The defaults are the default protocol.

    Attributes:
        frame: (height, width) that images are padded to on all sides; None: each at its own size.
        boundaries: also score boundaries by odsF, oisF and AP: "seism" (after non-maximum suppression, as
            published) or "raw"; None: pixel by pixel only.
        max_dist: how far matched boundaries may be apart, as a share of the image's diagonal; None: as the
            data set says, else 0.0075.
        boundary_ids: images whose boundaries are scored; None: all.

    Raises:
        ConfigError: a value that cannot work.
    """

    frame: tuple[int, int] | None = None
    boundaries: Literal["seism", "raw"] | None = None
    max_dist: float | None = None
    boundary_ids: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.boundaries not in (None, *SUPPRESSIONS):
            known = ", ".join(SUPPRESSIONS)
            raise ConfigError(f"boundaries must be one of {known} or None, got {self.boundaries!r}")
        if self.max_dist is not None and not 0 < self.max_dist < 1:
            raise ConfigError(f"max_dist must be between 0 and 1 (of the diagonal), got {self.max_dist:g}")

    @classmethod
    def published(cls, dataset: LabelledImages, tasks: Iterable[str]) -> Protocol:
        """Return the protocol of the published results on a data set, if `tasks` are scored.

        The frame and the tolerance of boundaries are those that `dataset.evaluation` names.
        """
        frame = dataset.evaluation.get("frame")
        thin = any(dataset.tasks[task].thin for task in tasks)
        return cls(None if frame is None else tuple(frame), "seism" if thin else None)


def evaluate(
    model: DiffusionMTL | MultiTaskBaseline | Engine | str | os.PathLike,
    data: LabelledImages | str | os.PathLike,
    *,
    protocol: str | Protocol = "default",
    tasks: Iterable[str] | None = None,
    ids: Collection[str] | None = None,
    steps: int | str | None = None,
    seed: int = 0,
    initial: bool = False,
    batch_size: int = 8,
    world: World | None = None,
) -> Metrics:
    """Score a model on a data set.

    Args:
        model: a model; an `Engine` (for its device, precision, averaged noise samples); or whatever
            `from_pretrained` loads.
        data: a split of a data set, as `open_dataset` returns it; or what it opens, for the split "val".
        protocol: "default": every image at its own size; "published": frame, boundaries and tolerance as in
            the published results, in fp32; or a `Protocol`.
        tasks: names of the tasks to score, default all that model and data share.
        ids: images to score, default all.
        steps: denoising steps, default as trained; "auto": until a step changes little.
        seed: of the chain's noise.
        initial: also score the initial predictions, as "initial/<task>".
        batch_size: images at once.
        world: the processes that share the images (`dmtl.runtime.distributed.connect`); default: this one.

    Returns:
        {task: {metric: value}}.

    Raises:
        ConfigError: an unknown protocol or task, tasks of one name that differ.
        DataError: a damaged file, unknown ids.

    Examples:
        >>> evaluate("runs/mine", open_dataset("my-data", "val"))["semseg"]["mIoU"]
    """
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ConfigError(
            f"evaluate: protocol must be {' or '.join(PROTOCOLS)} or a Protocol, got {protocol!r}"
            f"{did_you_mean(protocol, PROTOCOLS)}"
        )
    if isinstance(data, (str, os.PathLike)):
        data = open_dataset(data, "val")
    engine = _engine(model, "fp32" if protocol == "published" else "auto")
    names = shared_tasks(engine.tasks, data.tasks, tasks)
    if isinstance(protocol, str):
        protocol = Protocol.published(data, names) if protocol == "published" else Protocol()
    evaluation = Evaluation(data, names, protocol, ids=ids, batch_size=batch_size)
    return evaluation.score(engine, steps=steps, seed=seed, initial=initial, world=world)


def _engine(model: DiffusionMTL | MultiTaskBaseline | Engine | str | os.PathLike, precision: str) -> Engine:
    if isinstance(model, (str, os.PathLike)):
        return Engine(from_pretrained(model), precision=precision, inplace=True)
    if isinstance(model, (DiffusionMTL, MultiTaskBaseline)):
        return Engine(model, precision=precision)
    return model


class Evaluation:
    """A data set prepared for scoring by a protocol.

    An image has the same place, hence the same noise, whatever else is scored.

    Args:
        dataset: a split of a data set.
        names: of the tasks to score.
        protocol: how.
        ids: images to score, default all.
        batch_size: images at once.
        data: what the data set is called in `description`, default its name.

    Raises:
        ConfigError: boundaries are asked for, and no scored task has them.
        DataError: unknown ids.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        names: Iterable[str],
        protocol: Protocol,
        *,
        ids: Collection[str] | None = None,
        batch_size: int = 8,
        data: str | None = None,
    ):
        self.tasks: dict[str, Task] = {name: dataset.tasks[name] for name in names}
        _check_ids("ids", ids, dataset)
        _check_ids("boundary_ids", protocol.boundary_ids, dataset)
        self.loader = _loader(dataset, list(self.tasks), protocol.frame, ids, batch_size)
        rows, visible = self.loader.order(0), self.loader.visible
        self.needed = {
            task: [dataset.ids[row] for row in rows[visible.column(task)[rows]]] for task in visible.tasks
        }
        """task -> ids of the images whose label is scored."""
        self.description: dict[str, Any] = {
            "data": dataset.name if data is None else data,
            "split": dataset.split,
            "images": len(rows),
            "frame": protocol.frame,
            "boundaries": protocol.boundaries,
            "max_dist": None,
            "boundary_images": None,
        }
        """What metrics depend on besides the model, JSON-able."""
        self.boundaries = None
        if protocol.boundaries is not None:
            self.boundaries = self._boundaries(dataset, protocol, protocol.boundaries)

    def _boundaries(
        self, dataset: LabelledImages, protocol: Protocol, kind: Literal["seism", "raw"]
    ) -> Boundaries:
        thin = [name for name in self.needed if self.tasks[name].thin]
        if not thin:
            raise ConfigError(
                "boundaries need a binary task with `thin: true`, such as edge, among those scored, "
                f"got {', '.join(self.needed)}"
            )
        max_dist = protocol.max_dist or dataset.evaluation.get("max_dist", MAX_DIST)
        ids = None if protocol.boundary_ids is None else set(protocol.boundary_ids)
        labelled = {id for name in thin for id in self.needed[name] if ids is None or id in ids}
        self.description |= {"max_dist": max_dist, "boundary_images": len(labelled)}

        def truth(index: int, task: str) -> Tensor | None:
            return dataset.boundaries(index) if task == dataset.boundary_task else None

        return Boundaries(
            lambda ignore: Boundary(protocol=kind, max_dist=max_dist, ignore=ignore),
            truth,
            ids,
        )

    def __str__(self) -> str:
        about = self.description
        frame = about["frame"]
        frame = "images at their own size" if frame is None else "frame {}x{}".format(*frame)
        text = f"{about['data']} ({about['split']}, {about['images']} images; {frame}"
        if about["boundaries"] is not None:
            count = about["boundary_images"]
            some = "" if count == about["images"] else f", {count} images"
            text += f"; boundaries: {about['boundaries']}, max_dist {about['max_dist']:g}{some}"
        return text + ")"

    def primary(self) -> dict[str, str]:
        """Return the main metric of every task."""
        odsf = f"odsF_{self.description['boundaries']}"
        return {
            name: odsf if self.boundaries is not None and task.thin else task.primary
            for name, task in self.tasks.items()
        }

    def notes(self) -> dict[str, dict[str, str]]:
        """Return task -> metric -> what it is, if its name does not say it."""
        found = {}
        for name, task in self.tasks.items():
            found[name] = dict(task.new_metric().notes)
            if self.boundaries is not None and task.thin:
                found[name] |= self.boundaries.metric(task.ignore).notes
        return found

    def score(self, source: Any, batches: Iterable[Batch] | None = None, **options: Any) -> Metrics:
        """Score an engine, a model, or saved maps.

        Args:
            source, options: as in `dmtl.evaluation.scoring.score`.
            batches: those of `loader`, the default, if they are watched on their way.
        """
        batches = self.loader if batches is None else batches
        return score(source, batches, tasks=self.tasks, boundaries=self.boundaries, **options)


def shared_tasks(
    ours: Mapping[str, Task],
    theirs: Mapping[str, Task],
    wanted: Iterable[str] | None = None,
    *,
    source: object = "the model",
    data: object = "the data set",
) -> list[str]:
    """Return the names of the tasks to score: those wanted, or all that both sides have.

    Args:
        ours: of the model or of saved maps, called `source` in errors.
        theirs: of the data set, called `data` in errors.

    Raises:
        ConfigError: one side lacks a wanted task, both mean different things by a name, or they share none.
    """
    names = [task for task in ours if task in theirs] if wanted is None else list(wanted)
    for name in names:
        for where, tasks in ((data, theirs), (source, ours)):
            if name not in tasks:
                raise ConfigError(
                    f"tasks: {where} has no task {name!r} (it has {', '.join(tasks) or 'none'})"
                )
        converter(name, ours[name], theirs[name], source, data)
    if not names:
        both = f"{', '.join(ours) or 'none'} and {', '.join(theirs)}"
        raise ConfigError(f"{source} and {data} share no task ({both})")
    return names


def _loader(
    dataset: LabelledImages,
    names: list[str],
    frame: tuple[int, int] | None,
    ids: Collection[str] | None,
    batch_size: int,
) -> Loader:
    listed = None
    if ids is not None:
        labels, chosen = dataset.available(), set(ids)
        shown = np.array([id in chosen for id in labels.ids])
        listed = LabelMatrix(labels.ids, labels.tasks, labels.matrix & shown[:, None])
    return make_loader(
        dataset,
        listed,
        eval_transform(frame=frame),
        batch_size=batch_size,
        shuffle=False,
        only_labelled=listed is not None,
        tasks=names,
    )


def _check_ids(argument: str, ids: Collection[str] | None, dataset: LabelledImages) -> None:
    given = set(ids or ())
    if unknown := sorted(given - set(dataset.ids)):
        raise DataError(
            f"{argument}: {len(unknown)} of {len(given)} are unknown, the first is {unknown[0]!r}, "
            f"expected images of {dataset.name}, split {dataset.split!r}"
        )
