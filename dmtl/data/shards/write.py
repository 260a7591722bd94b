"""Write any data set as WebDataset shards, one by one. Repeating an interrupted call continues it."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmtl.data.base import LabelledImages
from dmtl.data.folder.described import Described
from dmtl.data.folder.write import BOUNDARIES, Exported, SampleWriter, locked
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.wrappers import Subset
from dmtl.data.parallel import in_parallel
from dmtl.data.shards.dataset import FILE, Shards, read_contents, shards_root, write_contents
from dmtl.data.shards.index import Place, places, write_index
from dmtl.data.shards.member import BLOCK, IMAGES, Shard, member_name, split_name
from dmtl.errors import DataError
from dmtl.runtime.files import write_bytes

_MB = 1_000_000
_END = bytes(2 * BLOCK)


def export_shards(
    dataset: LabelledImages,
    out: str | os.PathLike,
    megabytes: int,
    labels: LabelMatrix | None = None,
    *,
    skip_corrupt: int = 0,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Exported:
    """Write `dataset` to `out/000000.tar`, ..., each with its index, and `out/dataset.yaml`.

    Files of a folder or of other shards are copied byte for byte, together with their options in
    dataset.yaml. For any other data set, the files are those that `export_folder` writes. Equal calls write
    equal bytes. After an interruption, the same call keeps the complete shards. Other splits can be added
    later.

    Args:
        dataset: the data set to write.
        out: folder to write.
        megabytes: maximum size of a shard in MB (10^6 bytes); one shard is held in memory.
        labels: write only the labels that it shows; None: all.
        skip_corrupt: number of samples that may be left out because they cannot be read; one more is an
            error.
        workers: processes that read; 0: use this process.
        progress: wraps the loop over the samples that are written.

    Returns:
        The state of the split after the call; `folder` is the root to open, with braces.

    Raises:
        DataError: a sample is damaged or larger than a shard; or the folder holds something else, or is being
            written by another process.
        OSError: the folder cannot be written.
    """
    if megabytes < 1:
        raise DataError(f"export_shards: megabytes must be at least 1, got {megabytes}")
    folder, split = Path(out), dataset.split
    writer = (SampleWriter if _source(dataset, 0) is None else _Copier)(dataset, folder, labels)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    unknown: Counter[tuple[str, str]] = Counter()
    skipped: list[str] = []
    with locked(folder):
        found = read_contents(str(folder))
        content = writer.description(found, path)
        names = content.setdefault("splits", {}).setdefault(split, [])
        listed = [name for each in content["splits"].values() for name in each]
        if sorted(listed) != [f"{number:06}.tar" for number in range(len(listed))]:
            raise DataError(
                f"{path}: splits does not list 000000.tar, 000001.tar, ..., expected the shards of an export"
            )
        todo = _todo(dataset, folder, names)
        if (continued := content.get("unfinished", split)) != split:
            raise DataError(f"{path}: the export of {continued} was interrupted, repeat and finish it first")
        if names and "unfinished" not in content:
            todo = []  # what is left was skipped
        begun = "unfinished" in content
        content["unfinished"] = split
        samples = _samples(writer, todo, workers, progress, unknown, skipped, skip_corrupt)
        for tar in _tars(samples, megabytes):
            name = f"{sum(map(len, content['splits'].values())):06}.tar"
            if (folder / name).exists() and not begun:
                raise DataError(
                    f"{folder / name}: exists already, but dataset.yaml does not list it, expected an empty "
                    "folder or one with an earlier export"
                )
            if not begun:
                write_contents(folder, content)
                begun = True
            write_bytes(folder / name, tar.bytes())
            write_index(Shard.of(str(folder / name)), tar.places)
            names.append(name)
            write_contents(folder, content)
        if not names:
            raise DataError(f"{skipped[0]} (no sample of {split} can be read)")
        del content["unfinished"]
        if todo:
            write_contents(folder, content)
        count = sum(map(len, content["splits"].values()))
    root = folder / shards_root(["000000.tar", f"{count - 1:06}.tar"])
    made = Shards(str(root), split)
    return Exported(
        folder=root,
        images=len(made),
        written=len(todo) - len(skipped),
        labels={task: int(made.available().column(task).sum()) for task in dataset.tasks},
        size=sum(shard.size for shard in made.shards),
        unknown={task: (unknown[task, "unknown"], unknown[task, "all"]) for task in dataset.tasks},
        skipped=skipped,
    )


class _Tar:
    """An uncompressed tar in memory; equal files give equal bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.places: list[Place] = []
        self.size = len(_END)

    def add(self, files: list[tuple[str, bytes, bytes]]) -> None:
        for name, header, content in files:
            self.places.append(Place(name, self.size - len(_END) + len(header), len(content)))
            self.parts += [header, content, bytes(-len(content) % BLOCK)]
            self.size += _length(header, content)

    def bytes(self) -> bytes:
        return b"".join([*self.parts, _END])


def _tars(samples: Iterable[tuple[str, dict[str, bytes]]], megabytes: int) -> Iterator[_Tar]:
    """Yield shards that hold the samples, which are given as (id, {path: content})."""
    tar = _Tar()
    for id, contents in samples:
        files = [_file(path, content) for path, content in contents.items()]
        size = sum(_length(header, content) for _, header, content in files)
        if size + len(_END) > megabytes * _MB:
            raise DataError(
                f"{id!r} needs {size / 1e6:.1f} MB, expected at most {megabytes} MB, the size of a shard"
            )
        if tar.size + size > megabytes * _MB:
            yield tar
            tar = _Tar()
        tar.add(files)
    if tar.places:
        yield tar


def _file(path: str, content: bytes) -> tuple[str, bytes, bytes]:
    """Return name, header and content that a file of the folder format has in a tar."""
    folder, _, inner = path.partition("/")
    id, suffix = os.path.splitext(inner)
    info = tarfile.TarInfo(member_name(folder, id, suffix))
    info.size = len(content)
    return info.name, info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"), content


def _length(header: bytes, content: bytes) -> int:
    """Return the bytes that a file takes in a tar, filled up to whole blocks."""
    return len(header) + len(content) + -len(content) % BLOCK


class _Copier(SampleWriter):
    """Copy the files of a folder or shards as they are, after decoding them as a check."""

    def options(self) -> dict[str, dict[str, Any]]:
        source, _ = _existing(self.dataset, 0)
        return {task: source.options[task] for task in self.dataset.tasks}

    def contents(self, index: int) -> tuple[dict[str, bytes], dict[str, Tensor]]:
        source, at = _existing(self.dataset, index)
        id = self.dataset.ids[index]
        sample = source.read(at, self.shown(id))
        files = {
            IMAGES: source.image_file(at),
            **{task: source.label_file(at, task) for task in sample.labels},
        }
        if source.boundaries(at) is not None:
            files[BOUNDARIES] = source.boundary_file(at)
        found = {f"{name}/{id}{f.suffix}": f.read_bytes() for name, f in files.items() if f is not None}
        return found, sample.labels


def _source(dataset: LabelledImages, index: int) -> tuple[Described, int] | None:
    """Return the folder or shards that hold an image, and its index there; None if it is in neither."""
    while isinstance(dataset, Subset):
        index, dataset = dataset.indices[index], dataset.dataset
    return (dataset, index) if isinstance(dataset, Described) else None


def _existing(dataset: LabelledImages, index: int) -> tuple[Described, int]:
    found = _source(dataset, index)
    assert found is not None
    return found


class _Reader:
    """Called with an index, return the files of a sample and its pixels by (task, "unknown" or "all")."""

    def __init__(self, writer: SampleWriter):
        self.writer = writer

    def __call__(
        self, index: int
    ) -> tuple[dict[str, bytes], dict[tuple[str, str], int]] | DataError | OSError:
        try:
            contents, labels = self.writer.contents(index)
        except (DataError, OSError) as error:
            return error  # returned, so that worker processes pass it on unchanged
        return contents, self.writer.pixels(labels)


def _samples(
    writer: SampleWriter,
    todo: Sequence[int],
    workers: int,
    progress: Callable[[Sequence], Iterable],
    unknown: Counter[tuple[str, str]],
    skipped: list[str],
    skip_corrupt: int,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield id and files of the samples that can be read; fill `unknown` and `skipped`."""
    for index, found in zip(progress(todo), in_parallel(_Reader(writer), todo, workers)):
        id = writer.dataset.ids[index]
        if isinstance(found, OSError):
            raise found
        if isinstance(found, DataError):
            skipped.append(str(found))
            if len(skipped) > skip_corrupt:
                raise DataError(
                    f"{found} (sample {id!r}; fix it or allow some to be skipped, then repeat the call)"
                )
            continue
        unknown.update(found[1])
        yield id, found[0]


def _todo(dataset: LabelledImages, folder: Path, names: Sequence[str]) -> list[int]:
    """Return the samples that follow those in the existing shards.

    Raises:
        DataError: the existing shards were not written from this data set.
    """
    place = {id: index for index, id in enumerate(dataset.ids)}
    first = 0
    for name in names:
        for id in dict.fromkeys(split_name(file.name)[1] for file in places(Shard.of(str(folder / name)))):
            if place.get(id, -1) < first:
                raise DataError(
                    f"{folder / name}: has {id!r}, which is not the next image of {dataset.name}, expected "
                    "the source from which the export was begun"
                )
            first = place[id] + 1
    return list(range(first, len(dataset)))
