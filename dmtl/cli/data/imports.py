"""`dmtl data import`: what annotation tools write, as a folder to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import check_at_least, positional
from dmtl.cli._common import say
from dmtl.cli._progress import bar
from dmtl.cli.data.folders import summarise
from dmtl.errors import ConfigError


@dataclass(frozen=True)
class Import:
    """Write the annotations of a labelling tool as a folder to train on.

    Images are copied byte for byte. An image without an annotation stays unlabelled; docs/importing.md says
    how each format marks an image as annotated and empty. Where shapes overlap, the later one is on top.
    """

    format: Annotated[str, *positional("FORMAT")]
    """coco (instances or stuff), coco-panoptic, coco-stuff (pixel maps), labelme, cvat, label-studio, voc
    (also "Segmentation mask" of CVAT) or huggingface."""
    source: Annotated[str, *positional("SOURCE")]
    """The annotation file, or the folder of labelme, voc and huggingface (or a Hub id)."""
    target: Annotated[str, *positional("TARGET")]
    """Folder to write, or to add a split to."""
    images: str | None = None
    """Folder of the images; default: that of SOURCE."""
    masks: str | None = None
    """Folder of the masks of coco-panoptic, coco-stuff and voc; default: next to SOURCE, as distributed."""
    task: str = "semseg"
    """Task that the labels belong to."""
    classes: list[str] | None = None
    """Classes in their order; other labels are skipped. Default: those of TARGET, or else all labels."""
    background: str = "background"
    """Class of the pixels that no shape covers; "": they are ignored."""
    ignore: list[str] = dataclasses.field(default_factory=list)
    """Labels whose pixels are ignored (huggingface: stored values)."""
    empty: bool = False
    """coco and cvat: images without an annotation are labelled as empty. label-studio, with --map: in an
    annotated image, a task without a region is labelled as empty."""
    map: list[str] = dataclasses.field(default_factory=list)
    """huggingface: TASK=COLUMN, or TASK:KIND=COLUMN for a custom task, and image=COLUMN. label-studio:
    TASK=NAME of a control tag."""
    scale: list[str] = dataclasses.field(default_factory=list)
    """huggingface: TASK=NUMBER, the value of one step of a label stored as whole numbers."""
    split: list[str] | None = None
    """Name of the split to write (default: train). If the source has splits: those to import (default:
    all)."""
    val: float = 0.0
    """Share of the labelled images to write as the split "val", if the source has no splits."""
    skip_corrupt: int = 0
    """Number of images of a split that may be skipped because they are missing or unreadable."""
    workers: int = 0
    """Processes that read and write; 0: only this one."""


def run(args: Import) -> int:
    check_at_least(args, workers=0)
    from dmtl.data.imports import Options, import_folder

    try:
        scale = {task: float(value) for task, value in _pairs("--scale", args.scale).items()}
    except ValueError:
        raise ConfigError(f"--scale must be TASK=NUMBER, got {' '.join(args.scale)!r:.80}") from None
    options = Options(
        images=args.images,
        masks=args.masks,
        task=args.task,
        classes=None if args.classes is None else tuple(args.classes),
        background=args.background,
        ignore=tuple(args.ignore),
        empty=args.empty,
        map=_pairs("--map", args.map),
        scale=scale,
    )
    made = import_folder(
        args.format,
        args.source,
        args.target,
        options,
        splits=args.split,
        val=args.val,
        skip_corrupt=args.skip_corrupt,
        workers=args.workers,
        progress=lambda split: bar(f"{args.format} {split}"),
    )
    for note in made.notes:
        say(note)
    summarise(made.splits)
    return 0


def _pairs(option: str, words: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE words as a dictionary."""
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value or name in found:
            raise ConfigError(f"{option} must be NAME=VALUE with different names, got {word!r:.80}")
        found[name] = value
    return found
