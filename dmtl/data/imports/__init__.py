"""Import the files of annotation tools: `import_folder` converts them to the folder format.

Each module reads one tool's formats; `FORMATS` lists the formats by name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dmtl.data.base import LabelledImages, unknown_name
from dmtl.data.folder.dataset import read_description
from dmtl.data.folder.paths import plain_name
from dmtl.data.folder.write import Exported, export_folder
from dmtl.data.imports.format import Context, Format, Found, Options
from dmtl.data.loading.wrappers import Subset
from dmtl.errors import ConfigError, DataError
from dmtl.registry import Registry

__all__ = ["FORMATS", "Imported", "Options", "import_folder", "read_source"]

FORMATS: Registry[Format] = Registry(
    "FORMAT",
    {
        "coco": "dmtl.data.imports.coco:INSTANCES",
        "coco-panoptic": "dmtl.data.imports.coco:PANOPTIC",
        "coco-stuff": "dmtl.data.imports.coco:STUFF",
        "labelme": "dmtl.data.imports.labelme:LABELME",
        "cvat": "dmtl.data.imports.cvat:CVAT",
        "label-studio": "dmtl.data.imports.label_studio:LABEL_STUDIO",
        "voc": "dmtl.data.imports.voc:VOC",
        "huggingface": "dmtl.data.imports.huggingface:HUGGINGFACE",
    },
)

_VALIDATION = ("valid", "validation", "dev")  # what others call "val"


@dataclass(frozen=True)
class Imported:
    """The result of `import_folder`.

    Attributes:
        splits: what was written, by name of the split.
        notes: sentences for the user about what was left out and what has no label.
    """

    splits: dict[str, Exported]
    notes: list[str]


def import_folder(
    format: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    options: Options = Options(),  # noqa: B008  # it never changes
    *,
    splits: Sequence[str] | None = None,
    val: float = 0.0,
    skip_corrupt: int = 0,
    workers: int = 0,
    progress: Callable[[str], Callable[[Sequence], Iterable]] = lambda label: iter,
) -> Imported:
    """Convert the images and annotations of a tool to the folder format.

    Args:
        format: one of `FORMATS`.
        source: the annotations: a file or a folder, depending on the format.
        out: folder to write. It may already have other splits of the same tasks.
        options: what the annotation files do not say, such as the names of the classes.
        splits: if the source has splits: those to write; None: all. If it has none: the one name under which
            to write it; None: "train".
        val: share (from 0 to below 1) of the labelled images to write as the split "val", if the source has
            no splits. The choice depends only on the images' names.
        skip_corrupt: maximum number of images in a split to leave out because they are missing or unreadable.
        workers: processes that read and write; 0: use this process.
        progress: function that gets the name of a split and returns a wrapper for the loop over its samples.

    Raises:
        ConfigError: an option is unknown to the format, or its value cannot work.
        DataError: annotations are damaged or contradict the images (the message names file and entry), or
            `out` already has all of the splits.
    """
    out = Path(out)
    for folder in _inputs(Path(source), options):
        if folder.resolve() == out.resolve():
            raise ConfigError(f"TARGET must not be {folder}, because the import reads files from there")
    with tempfile.TemporaryDirectory(prefix="dmtl-import-") as scratch:
        known = _known_classes(out)
        found = read_source(format, source, options, Context(known, skip_corrupt, Path(scratch)))
        chosen = _divide(found.splits, splits, val, source)
        names = [plain_name(split, f"{source}: name of a split") for split in chosen]
        listings = [out / "splits" / f"{name}.txt" for name in names]
        # If only some exist, an import was interrupted: the exporter compares them with this source and
        # resumes.
        if all(listing.exists() for listing in listings):
            raise DataError(
                f"{listings[0]}: exists already, expected a new split; import into a new folder, or choose "
                "other splits with --split"
            )
        written = {}
        for split, dataset in chosen.items():
            dataset.name, dataset.split = out.resolve().name, split
            written[split] = export_folder(
                dataset,
                out,
                skip_corrupt=skip_corrupt,
                workers=workers,
                progress=progress(split),
                verify_all=True,
            )
    return Imported(written, found.notes)


def read_source(format: str, source: str | os.PathLike, options: Options, context: Context) -> Found:
    """Read all annotations of a source.

    Args:
        format: one of `FORMATS`.
        source: the annotations: a file or a folder, depending on the format.
        options: what the annotation files do not say.
        context: what the target already has, how many images may be missing, and a folder for temporary
            files.

    Raises:
        ConfigError: the format is unknown or does not use one of the options given.
        DataError: annotations are damaged or contradict the images; the message names file and entry.
    """
    made = FORMATS.get(format)
    given = [f.name for f in fields(Options) if getattr(options, f.name) != getattr(Options(), f.name)]
    for name in given:
        if name not in made.follows:
            follows = ", ".join(f"--{name}" for name in sorted(made.follows))
            raise ConfigError(f"--{name} has no effect for {format}, which only uses {follows}; remove it")
    return made.read(Path(source), options, context)


def _inputs(source: Path, options: Options) -> list[Path]:
    """Return the folders that the import reads files from."""
    images = options.images or (source if source.is_dir() else source.parent)
    return [source, *(Path(folder) for folder in (images, options.masks) if folder)]


def _known_classes(out: Path) -> dict[str, list[str]]:
    """Return the classes of the target's tasks by task; empty if the target has no split yet."""
    if not list((out / "splits").glob("*.txt")):
        return {}
    tasks = read_description(out)["tasks"]
    return {
        name: options["classes"]
        for name, options in tasks.items()
        if isinstance(options.get("classes"), list)
    }


def _divide(
    found: Mapping[str, LabelledImages], splits: Sequence[str] | None, val: float, source: str | os.PathLike
) -> dict[str, LabelledImages]:
    """Return the data set to write for each split, by the split's name in the target."""
    if not 0 <= val < 1:
        raise ConfigError(f"--val must be a fraction of at least 0 and below 1, got {val:g}")
    if set(found) == {""}:
        names = ["train"] if splits is None else list(splits)
        if len(names) != 1:
            raise ConfigError(f"--split must be a single name, because {source} has no splits, got {names}")
        return _with_val(names[0], found[""], val)
    if val:
        raise ConfigError(f"--val is only for sources without splits; {source} has {', '.join(found)}")
    named: dict[str, LabelledImages] = {}
    for name, dataset in found.items():
        name = name.lower()
        name = "train" if name in ("", "default") else "val" if name in _VALIDATION else name
        if name in named:
            raise DataError(f"{source}: two splits are called {name!r}, expected different names")
        named[name] = dataset
    for name in splits or ():
        if name not in named:
            raise ConfigError(f"--split: {unknown_name('split', name, named)}")
    return {name: dataset for name, dataset in named.items() if splits is None or name in splits}


def _with_val(name: str, dataset: LabelledImages, val: float) -> dict[str, LabelledImages]:
    """Divide a data set into the split `name` and, with the share `val` of its labelled images, "val"."""
    if not val:
        return {name: dataset}
    labelled = np.flatnonzero(dataset.available().matrix.any(1)).tolist()
    count = round(len(labelled) * val)
    if not 0 < count < len(labelled) or name == "val":
        raise ConfigError(
            f"--val {val:g} of {len(labelled)} labelled images leaves no image for {name!r} or for 'val'; "
            "choose another share"
        )
    order = sorted(labelled, key=lambda n: hashlib.sha256(dataset.ids[n].encode()).digest())
    chosen = set(order[:count])
    parts = {name: [n for n in range(len(dataset)) if n not in chosen], "val": sorted(chosen)}
    return {split: Subset(dataset, rows) for split, rows in parts.items()}
