"""Labelled images in WebDataset shards: `my-shards/{000000..000127}.tar`, with `dataset.yaml` next to them.

    name: rooms
    tasks:
      depth: {kind: scalar, scale: 0.001}
    splits: {train: "{000000..000126}.tar", val: "000127.tar"}

All keys of a folder's dataset.yaml except `labels` have the same meaning here. `splits` says which shards
belong to a split. The root may name all shards or only some of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dmtl.data.base import unknown_name
from dmtl.data.folder.described import Described
from dmtl.data.folder.description import KEYS as FOLDER_KEYS
from dmtl.data.folder.description import description_text, parse_description
from dmtl.data.folder.paths import inner_path
from dmtl.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.shards.index import places
from dmtl.data.shards.member import IMAGES, Member, Shard, is_remote, member_name, read_file, split_name
from dmtl.errors import DataError
from dmtl.runtime.files import write_text
from dmtl.text import shortened

FILE = "dataset.yaml"
KEYS = (*(key for key in FOLDER_KEYS if key != "labels"), "splits", "unfinished")
MAX_SHARDS = 1_000_000


def shard_paths(root: str) -> list[str]:
    """Return the paths that a root names: `{000..127}` expands to numbers of 3 digits, `{a,b}` to a and b.

    Raises:
        DataError: a brace is not closed or contains something else, or there are too many shards.
    """
    parts: list[list[str]] = []
    for place, text in enumerate(re.split(r"\{([^{}]*)\}", root)):
        counted = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text) if place % 2 else None
        if counted:
            first, last = map(int, counted.groups())
            if not first <= last < first + MAX_SHARDS:
                raise DataError(
                    f"{root}: {{{text}}} counts {last - first + 1} shards, expected 1 to {MAX_SHARDS}"
                )
            parts.append([f"{n:0{len(counted[1])}}" for n in range(first, last + 1)])
        elif (place % 2 and "," not in text) or (not place % 2 and re.search("[{}]", text)):
            raise DataError(f"{root}: {text!r:.60} in braces, expected {{000000..000127}} or {{a,b}}")
        else:
            parts.append(text.split(",") if place % 2 else [text])
    if (count := math.prod(map(len, parts))) > MAX_SHARDS:
        raise DataError(f"{root}: names {count} shards, expected at most {MAX_SHARDS}")
    return ["".join(chosen) for chosen in product(*parts)]


def read_contents(folder: str) -> dict[str, Any] | None:
    """Read and check the `dataset.yaml` next to shards; None if it is missing.

    Args:
        folder: path or URL of the shards' folder.

    Returns:
        The content of the file, in which `splits` maps each split to a list of paths of shards.

    Raises:
        DataError: the file is damaged or wrong; the message names it.
    """
    path = f"{folder}/{FILE}"
    found = read_file(path)
    if found is None:
        return None
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from None
    content = parse_description(text, Path(path), Path(folder).resolve().name, KEYS)
    splits = content.get("splits")
    if not isinstance(splits, dict) or any(not isinstance(shards, str) for shards in splits.values()):
        raise DataError(f'{path}: no splits, expected `splits:` such as {{train: "{{000000..000127}}.tar"}}')
    try:
        content["splits"] = {str(split): shard_paths(shards) for split, shards in splits.items()}
    except DataError as error:
        raise DataError(f"{path}: splits: {error}") from None
    names = [name for shards in content["splits"].values() for name in shards]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a shard is in two splits")
    return content


def write_contents(folder: Path, content: dict[str, Any]) -> None:
    """Write the `dataset.yaml` that `read_contents` reads; shards of a split must be numbered without a
    gap."""
    splits = {split: shards_root(names) for split, names in content["splits"].items() if names}
    write_text(folder / FILE, description_text({**content, "splits": splits}))


def shards_root(names: Sequence[str]) -> str:
    """Return one word that names consecutive shards, such as `{000000..000127}.tar`."""
    first, last = (name.removesuffix(".tar") for name in (names[0], names[-1]))
    return f"{{{first}..{last}}}.tar"


class Shards(Described):
    """One split of a data set in shards.

    The index of each shard says where its files are (`dmtl.data.shards.index`). Each file is read with a
    single call and is not cached.

    Args:
        root: path or URL of the shards, such as `"DIR/{000000..000127}.tar"`.
        split: name of the split, such as "train".
        tasks: names of the tasks to use; None: all of `dataset.yaml`.

    Raises:
        DataError: a shard, a file in it or `dataset.yaml` is missing or damaged, or there is no such split or
            task; the message names it.
    """

    def __init__(self, root: str, split: str, tasks: Iterable[str] | None = None):
        self.root, paths = root, shard_paths(root)
        folder = root.rpartition("/")[0] or "."
        if any(path.rpartition("/")[0] != root.rpartition("/")[0] for path in paths):
            raise DataError(f"{root}: shards in several folders, expected braces only in the file name")
        content = read_contents(folder)
        where = f"{folder}/{FILE}"
        if content is None:
            raise DataError(f"{where}: no such file, expected it next to the shards (`dmtl data export`)")
        splits = content["splits"]
        if split not in splits:
            raise DataError(f"{where}: {unknown_name('split', split, splits)}")
        if content.get("unfinished") == split:
            raise DataError(f"{where}: the export of {split} was interrupted; repeat it to continue")
        known = {name for names in splits.values() for name in names}
        for path in paths:
            if path.rpartition("/")[2] not in known:
                raise DataError(f"{where}: {path} is in no split, expected every shard of {root} in one")
        ours = set(splits[split])
        self.shards = [Shard.of(path) for path in paths if path.rpartition("/")[2] in ours]
        if not self.shards:
            raise DataError(
                f"{root}: has no shard of the split {split!r}, expected some of {shortened(splits[split], 3)}"
            )
        self._boundary_folder: str | None = content.get("boundaries")
        self._folders = [IMAGES, *content["tasks"]]
        if self._boundary_folder is not None:
            self._folders.append(self._boundary_folder)
        ids = self._find()
        super().__init__(content, Path(where), split, tasks, ids)
        if self._boundary_folder is not None:
            has = self._size[:, -1] >= 0
            if has.any() and not has.all():
                raise DataError(
                    f"{root}: {int((~has).sum())} of the {len(ids)} images of {split} have no boundaries, "
                    f"the first is {ids[int(np.argmin(has))]!r}, expected all or none"
                )
            if has.any():
                self.use_boundaries()

    def _find(self) -> list[str]:
        """Find every file of every image, and return the ids. Fills these arrays of N images and F folders:

        _offset, _size   int64 [N, F]: position and size of a file in its shard; size -1: no such file
        _kind            [N, F]: suffix of the file, as an index into `_suffixes`
        _shard           [N]: shard of the image, as an index into `shards`
        """
        columns = {folder: number for number, folder in enumerate(self._folders)}
        suffixes: dict[str, int] = {}
        ids: list[str] = []
        tables: list[np.ndarray] = []
        for shard in self.shards:
            rows: dict[str, int] = {}
            cells: dict[tuple[int, int], tuple[int, int, int]] = {}
            for name, offset, size in places(shard):
                folder, id, suffix = split_name(name)
                column = columns.get(folder)
                if column is None or suffix.lower() not in _suffixes_of(folder, self._boundary_folder):
                    continue
                if id not in rows:
                    inner_path(id, f"{shard.path}: name of a file")
                cell = rows.setdefault(id, len(rows)), column
                if cell in cells:
                    raise DataError(f"{shard.path}/{name}: a second file of {id!r} for {folder}")
                cells[cell] = offset, size, suffixes.setdefault(suffix, len(suffixes))
            table = np.full((3, len(rows), len(columns)), -1, np.int64)
            if cells:
                row, column = np.array(list(cells)).T
                table[:, row, column] = np.array(list(cells.values())).T
            if len(lacking := np.flatnonzero(table[1, :, 0] < 0)):
                raise DataError(f"{shard.path}: {list(rows)[lacking[0]]!r} has labels but no image")
            ids += rows
            tables.append(table)
        if len(set(ids)) < len(ids):
            twice = next(id for id, times in Counter(ids).items() if times > 1)
            raise DataError(f"{self.root}: {twice!r} is in two shards")
        if not ids:
            raise DataError(f"{self.root}: no image in these shards, expected files such as 0001.jpg")
        self._offset, self._size, kind = (np.concatenate([t[n] for t in tables]) for n in range(3))
        self._kind, self._suffixes = kind.astype(np.int8), list(suffixes)
        self._shard = np.repeat(np.arange(len(tables), dtype=np.int32), [t.shape[1] for t in tables])
        return ids

    def _member(self, index: int, folder: str) -> Member | None:
        column = self._folders.index(folder)
        if self._size[index, column] < 0:
            return None
        name = member_name(folder, self.ids[index], self._suffixes[self._kind[index, column]])
        shard = self.shards[self._shard[index]]
        return Member(shard, name, int(self._offset[index, column]), int(self._size[index, column]))

    def image_file(self, index: int) -> Member:
        found = self._member(index, IMAGES)
        assert found is not None
        return found

    def label_file(self, index: int, task: str) -> Member | None:
        return self._member(index, task)

    def boundary_file(self, index: int) -> Member | None:
        return None if self._boundary_folder is None else self._member(index, self._boundary_folder)

    def image_name(self, index: int) -> str:
        return self.image_file(index).name

    def shard_numbers(self) -> np.ndarray:
        return self._shard

    def available(self) -> LabelMatrix:
        return self._available

    @cached_property
    def _available(self) -> LabelMatrix:
        columns = [self._folders.index(task) for task in self.tasks]
        return LabelMatrix(self.ids, list(self.tasks), self._size[:, columns] >= 0)

    def identity(self, task: str | None = None) -> list:
        """Add the shards, their sizes and times of change, and the positions of the files in them."""
        column = self._folders.index(task or IMAGES)
        paths = [s.path if is_remote(s.path) else str(Path(s.path).resolve()) for s in self.shards]
        shards = [[path, shard.size, shard.changed] for path, shard in zip(paths, self.shards)]
        where = [self._shard.tolist(), self._offset[:, column].tolist()]
        return [*super().identity(task), self._reads.get(task or "", {}), shards, where]


def _suffixes_of(folder: str, boundaries: str | None) -> tuple[str, ...]:
    if folder == IMAGES:
        return IMAGE_SUFFIXES
    return (".png",) if folder == boundaries else LABEL_SUFFIXES
