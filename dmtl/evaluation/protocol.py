"""Score a model on a data set by a protocol: which images, in which frame, and how boundaries are scored."""

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
from dmtl.tasks import Task, known_tasks

PROTOCOLS = ("default", "published")
SUPPRESSIONS = ("seism", "raw")


@dataclass(frozen=True)
class Protocol:
    """How predictions are scored. The default values are the default protocol.

    Attributes:
        frame: (height, width) to which images are padded on all sides; None: each image keeps its size.
        boundaries: also score boundaries by odsF, oisF and AP: "seism" (after non-maximum suppression, as
            published) or "raw"; None: only score pixel by pixel.
        max_dist: maximum distance of matched boundary pixels, as a fraction of the image's diagonal; None:
            the value of the data set, or 0.0075.
        boundary_ids: ids of the images whose boundaries are scored; None: all.

    Raises:
        ConfigError: an attribute has a value that cannot work.
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
            raise ConfigError(
                f"max_dist must be a fraction of the diagonal between 0 and 1, got {self.max_dist:g}"
            )

    @classmethod
    def published(cls, dataset: LabelledImages, tasks: Iterable[str]) -> Protocol:
        """Return the protocol of the published results on a data set, for scoring `tasks`.

        The frame and the tolerance of boundaries come from `dataset.evaluation`.
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
        model: a model; an `Engine`, to choose device, precision and noise samples; or anything that
            `from_pretrained` loads.
        data: a split of a data set (from `open_dataset`); or anything that `open_dataset` opens, of which the
            split "val" is scored.
        protocol: "default": every image at its own size. "published": frame, boundaries and tolerance of the
            published results, in fp32. Or a `Protocol`.
        tasks: names of the tasks to score; None: all that model and data share.
        ids: ids of the images to score; None: all.
        steps: number of denoising steps; None: as trained; "auto": until a step changes little.
        seed: seed of the noise.
        initial: also score the initial predictions, as "initial/<task>".
        batch_size: number of images in a batch.
        world: the processes that share the images (`dmtl.runtime.distributed.connect`); None: only this one.

    Returns:
        {task: {metric: value}}.

    Raises:
        ConfigError: a protocol or task is unknown, or a task means different things to model and data.
        DataError: a file is damaged, or an id is unknown.

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

    The noise of an image depends on its index in the data set, and not on which other images are scored.

    Args:
        dataset: a split of a data set.
        names: names of the tasks to score.
        protocol: how to score.
        ids: ids of the images to score; None: all.
        batch_size: number of images in a batch.
        data: name of the data set in `description`; None: its own name.

    Raises:
        ConfigError: boundaries are requested, but none of the tasks has boundaries.
        DataError: an id is unknown.
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
        """Task -> ids of the images whose label is scored."""
        self.description: dict[str, Any] = {
            "data": dataset.name if data is None else data,
            "split": dataset.split,
            "images": len(rows),
            "frame": protocol.frame,
            "boundaries": protocol.boundaries,
            "max_dist": None,
            "boundary_images": None,
        }
        """Everything that the metrics depend on except the model, in values that JSON can hold."""
        self.boundaries = None
        if protocol.boundaries is not None:
            self.boundaries = self._boundaries(dataset, protocol, protocol.boundaries)

    def _boundaries(
        self, dataset: LabelledImages, protocol: Protocol, kind: Literal["seism", "raw"]
    ) -> Boundaries:
        thin = [name for name in self.needed if self.tasks[name].thin]
        if not thin:
            raise ConfigError(
                "scoring boundaries needs a binary task with `thin: true`, such as edge, "
                f"got only {', '.join(self.needed)}"
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
        """Return task -> name of its main metric."""
        odsf = f"odsF_{self.description['boundaries']}"
        return {
            name: odsf if self.boundaries is not None and task.thin else task.primary
            for name, task in self.tasks.items()
        }

    def notes(self) -> dict[str, dict[str, str]]:
        """Return task -> metric -> a short explanation, for metrics whose name is not enough."""
        found = {}
        for name, task in self.tasks.items():
            found[name] = dict(task.new_metric().notes)
            if self.boundaries is not None and task.thin:
                found[name] |= self.boundaries.metric(task.ignore).notes
        return found

    def score(self, source: Any, batches: Iterable[Batch] | None = None, **options: Any) -> Metrics:
        """Score an engine, a model, or saved maps.

        Args:
            source: the `model` of `dmtl.evaluation.scoring.score`.
            batches: the batches of `loader`, for example wrapped by a progress bar; None: `loader` itself.
            options: other arguments of `dmtl.evaluation.scoring.score`.
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
    """Return the names of the tasks to score.

    Args:
        ours: tasks of the model or of saved maps.
        theirs: tasks of the data set.
        wanted: names of the tasks to score; None: all that both sides have.
        source: what messages call the model or the saved maps.
        data: what messages call the data set.

    Raises:
        ConfigError: one side lacks a task in `wanted`, a task means different things to the two sides, or
            they share no task.
    """
    if wanted is None:
        names = [task for task in ours if task in theirs]
    else:
        names = known_tasks(source, ours, known_tasks(data, theirs, wanted))
    for name in names:
        converter(name, ours[name], theirs[name], source, data)
    if not names:
        both = f"{', '.join(ours) or 'none'} and {', '.join(theirs)}"
        raise ConfigError(f"{source} and {data} have no task in common ({both})")
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
