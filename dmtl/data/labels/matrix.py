"""Store which labels of which images may be used: a 0/1 table of images and tasks, addressed by name.

The paper has two settings: *one label* (each image has the label of exactly one task) and *random labels*.
Both are drawn from a hash of (seed, id, task), not from a random generator. So an image gets the same labels
on every machine, with every library version and in any order of ids.
"""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dmtl.data.folder.paths import nfc, read_text
from dmtl.errors import DataError
from dmtl.runtime.files import write_text


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """`matrix[i, t]` says whether image `ids[i]` has a usable label of `tasks[t]`; bool [N, T].

    `name` starts error messages: the file that the table was read from.
    """

    ids: list[str]
    tasks: list[str]
    matrix: np.ndarray
    name: str = "labels"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [str(i) for i in self.ids])
        object.__setattr__(self, "tasks", [str(t) for t in self.tasks])
        object.__setattr__(self, "matrix", np.array(self.matrix, dtype=bool))  # a copy
        if self.matrix.shape != (len(self.ids), len(self.tasks)):
            expected = (len(self.ids), len(self.tasks))
            raise ValueError(f"LabelMatrix: matrix must be {expected}, got {self.matrix.shape}")
        for what, names in (("ids", self.ids), ("tasks", self.tasks)):
            if len(set(names)) != len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise DataError(f"LabelMatrix: {what} must be unique, got {twice!r} more than once")
        self.matrix.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LabelMatrix)
            and self.ids == other.ids
            and self.tasks == other.tasks
            and bool((self.matrix == other.matrix).all())
        )

    def __len__(self) -> int:
        return len(self.ids)

    # -- making one ------------------------------------------------------------------------------------

    @classmethod
    def full(cls, ids: Sequence[str], tasks: Sequence[str]) -> LabelMatrix:
        """Return a table in which every image has every label."""
        return cls(list(ids), list(tasks), np.ones((len(ids), len(tasks)), bool))

    @classmethod
    def one_label(
        cls, ids: Sequence[str], tasks: Sequence[str], seed: int = 0, available: LabelMatrix | None = None
    ) -> LabelMatrix:
        """Give each image the label of exactly one task, with tasks as balanced as possible.

        If every label is available, the counts differ by at most one. With `available`, only existing labels
        are chosen and the counts are as even as these allow. An image without any label gets none.
        """
        _check_tasks("one_label", tasks)
        ids, asked, tasks = list(ids), list(tasks), sorted(tasks)
        allowed = _allowed(ids, tasks, available)
        order = sorted(range(len(ids)), key=lambda i: _draw(seed, ids[i]))
        choice, count = np.full(len(ids), -1), [0] * len(tasks)
        ties = [_draw(seed, "task", task) for task in tasks]  # the seed decides which tasks get the remainder
        for i in order:
            options = np.flatnonzero(allowed[i])
            if len(options):
                choice[i] = min(options, key=lambda t: (count[t], ties[t]))
                count[choice[i]] += 1
        _even_out(choice, allowed, count, order)
        return cls(ids, tasks, choice[:, None] == np.arange(len(tasks))).subset(tasks=asked)

    @classmethod
    def random_labels(
        cls,
        ids: Sequence[str],
        tasks: Sequence[str],
        seed: int = 0,
        *,
        p: float | Mapping[str, float] = 0.5,
        available: LabelMatrix | None = None,
    ) -> LabelMatrix:
        """Keep each label with probability `p` (one number, or one per task), but at least one per image."""
        _check_tasks("random_labels", tasks)
        ids, tasks = list(ids), list(tasks)
        if isinstance(p, Mapping) and set(p) != set(tasks):
            raise ValueError(f"random_labels: p must have exactly the tasks {sorted(tasks)}, got {sorted(p)}")
        p_T = np.array([p[t] if isinstance(p, Mapping) else p for t in tasks], dtype=float)
        if not ((p_T >= 0) & (p_T <= 1)).all() or not p_T.any():
            raise ValueError(f"random_labels: p must be in [0, 1] and not all 0, got {p}")
        allowed = _allowed(ids, tasks, available)
        draws_NT = np.array([[_draw(seed, i, t) for t in tasks] for i in ids]).reshape(len(ids), len(tasks))
        # A label is kept if its draw is below p. Each image also keeps the label with the smallest draw / p.
        ratio = np.where(allowed, draws_NT / np.maximum(p_T, 1e-12), np.inf)
        keep = ratio < 1
        rows = np.flatnonzero(allowed.any(axis=1))
        keep[rows, ratio[rows].argmin(axis=1)] = True
        return cls(ids, tasks, keep)

    @classmethod
    def read_csv(cls, path: str | os.PathLike) -> LabelMatrix:
        """Read a CSV table with the header `id,<task>,<task>,...` and rows of 0 and 1.

        Raises:
            DataError: the file cannot be read, or a line is wrong; the message names file and line.
        """
        path = Path(path)
        try:
            return _parse(
                path, csv.reader(io.StringIO(read_text(path, "a CSV table"), newline=""), strict=True)
            )
        except csv.Error as error:
            raise DataError(f"{path}: not a readable table ({error}), expected CSV text") from error

    def write_csv(self, path: str | os.PathLike) -> None:
        """Write the table in the format that `read_csv` reads, atomically."""
        write_text(Path(path), self.csv_text())

    def csv_text(self) -> str:
        """Return the table in the format that `read_csv` reads."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["id", *self.tasks])
        table.writerows([i, *row] for i, row in zip(self.ids, self.matrix.astype(int).tolist()))
        return text.getvalue()

    # -- asking ----------------------------------------------------------------------------------------

    @cached_property
    def _row(self) -> dict[str, int]:
        return {nfc(i): n for n, i in enumerate(self.ids)}

    def tasks_of(self, id: str) -> list[str]:
        """Return the names of the tasks that image `id` has a label for."""
        row = self._row.get(nfc(id))
        if row is None:
            raise DataError(f"{self.name}: no row for image {id!r}")
        return [t for t, on in zip(self.tasks, self.matrix[row]) if on]

    def column(self, task: str) -> np.ndarray:
        """Return which images have a label of `task`, bool [N]."""
        if task not in self.tasks:
            raise DataError(f"{self.name}: no column for task {task!r}; available: {', '.join(self.tasks)}")
        return self.matrix[:, self.tasks.index(task)]

    def subset(self, ids: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> LabelMatrix:
        """Return the table of these images and tasks (None: all), in this order.

        Raises:
            DataError: the table lacks an image or a task.
        """
        ids = self.ids if ids is None else list(ids)
        tasks = self.tasks if tasks is None else list(tasks)
        missing = [i for i in ids if nfc(i) not in self._row]
        if missing:
            raise DataError(
                f"{self.name}: no row for {len(missing)} of {len(ids)} images, "
                f"the first is {missing[0]!r}, expected one row per image"
            )
        rows = [self._row[nfc(i)] for i in ids]
        columns = [self.column(t)[rows] for t in tasks]
        matrix = np.stack(columns, 1) if tasks else np.zeros((len(ids), 0), bool)
        return LabelMatrix(ids, tasks, matrix, self.name)

    def of_sources(self, names: Iterable[str]) -> dict[str, LabelMatrix]:
        """Return source -> its table, for a data set that joins several (`dmtl.data.sources`)."""
        return {name: self.subset([id for id in self.ids if id.startswith(f"{name}/")]) for name in names}

    def intersect(self, other: LabelMatrix) -> LabelMatrix:
        """Keep labels that both tables allow, over this table's images and tasks (matched by name)."""
        return LabelMatrix(self.ids, self.tasks, self.matrix & other.subset(self.ids, self.tasks).matrix)

    def pairs(self) -> np.ndarray:
        """Return how many images have labels of both tasks, int [T, T]; on the diagonal, of one task."""
        counted = self.matrix.astype(np.int64)
        return counted.T @ counted

    def agrees(self, other: LabelMatrix) -> bool:
        """Return whether both tables have the same ids in order and the same labels of their common tasks."""
        shared = [task for task in self.tasks if task in other.tasks]
        return self.ids == other.ids and self.subset(tasks=shared) == other.subset(tasks=shared)

    def statistics(self) -> dict:
        """Return counts that can be written as JSON.

        These are the images, the labels, the labels of each task, and how many images have k labels.
        """
        per_image = np.bincount(self.matrix.sum(1), minlength=1) if len(self.ids) else np.zeros(1, int)
        return {
            "images": len(self.ids),
            "labels": int(self.matrix.sum()),
            "per_task": {t: int(n) for t, n in zip(self.tasks, self.matrix.sum(0))},
            "labels_per_image": {str(k): int(n) for k, n in enumerate(per_image) if n},
        }


def _check_tasks(function: str, tasks: Sequence[str]) -> None:
    if not tasks:
        raise ValueError(f"{function}: tasks must name at least one task, got none")


def _draw(seed: int, *words: str) -> float:
    """Return a number in [0, 1) that depends only on the arguments."""
    text = "\0".join([str(int(seed)), *words])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _allowed(ids: list[str], tasks: list[str], available: LabelMatrix | None) -> np.ndarray:
    return np.ones((len(ids), len(tasks)), bool) if available is None else available.subset(ids, tasks).matrix


def _even_out(choice: np.ndarray, allowed: np.ndarray, count: list[int], order: Iterable[int]) -> None:
    """Move images from full tasks to scarce ones, through others if needed, until no move helps.

    Edges a -> b: some image with task a could have b instead. A path from a task to one with at least two
    fewer images makes the counts more equal (augmenting path); this ends in the optimum.
    """
    tasks = range(len(count))
    options: dict[tuple[int, int], set[int]] = {(a, b): set() for a in tasks for b in tasks}

    def place(i: int, add: bool) -> None:
        for b in np.flatnonzero(allowed[i]).tolist():
            (options[choice[i], b].add if add else options[choice[i], b].discard)(i)

    rank = {i: n for n, i in enumerate(order)}
    for i in np.flatnonzero(choice >= 0).tolist():
        place(i, add=True)
    moved = True
    while moved:
        moved = False
        for start in sorted(tasks, key=lambda t: -count[t]):
            came_from, queue = {start: start}, deque([start])
            while queue:
                a = queue.popleft()
                for b in tasks:
                    if b not in came_from and options[a, b]:
                        came_from[b] = a
                        queue.append(b)
            end = min(came_from, key=lambda t: count[t])
            if count[end] > count[start] - 2:
                continue
            count[start] -= 1
            count[end] += 1
            while end != start:
                a = came_from[end]
                i = min(options[a, end], key=rank.__getitem__)
                place(i, add=False)
                choice[i] = end
                place(i, add=True)
                end = a
            moved = True
            break


def _parse(path: Path, table: Iterable[list[str]]) -> LabelMatrix:
    rows = iter(table)
    header = [nfc(cell.strip()) for cell in next(rows, [])]
    if len(header) < 2 or header[0] != "id":
        raise DataError(f"{path}: line 1: header is {','.join(header)[:80]!r}, expected id,<task>,<task>,...")
    tasks = header[1:]
    if "" in tasks or len(set(tasks)) != len(tasks):
        raise DataError(
            f"{path}: line 1: a task name is empty or repeated, expected unique names, got {tasks}"
        )
    if odd := [task for task in tasks if not task.isprintable()]:
        raise DataError(f"{path}: line 1: name of a task {odd[0][:80]!r}, expected printable letters")
    ids: dict[str, int] = {}
    matrix = []
    for line, cells in enumerate(rows, start=2):
        cells = [nfc(cell.strip()) for cell in cells]
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}: line {line}: {len(cells)} cells, expected {len(header)} as in the header"
            )
        bad = [cell for cell in cells[1:] if cell not in ("0", "1")]
        if bad:
            raise DataError(f"{path}: line {line}: cell {bad[0][:20]!r}, expected 0 or 1")
        if not cells[0] or cells[0] in ids:
            why = f"id {cells[0]!r} is on line {ids[cells[0]]} too" if cells[0] else "the id is empty"
            raise DataError(f"{path}: line {line}: {why}, expected one row per image")
        ids[cells[0]] = line
        matrix.append([cell == "1" for cell in cells[1:]])
    return LabelMatrix(list(ids), tasks, np.array(matrix, bool).reshape(len(ids), len(tasks)), str(path))
