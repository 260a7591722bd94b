"""Tables of visible labels as they were published, and our CSV: read by what a file holds, not by its name.

    torch.save({"labels_weights": tensor [N, T]})   no names: a row is an image, a column a task
    torch.save({id: [0 or 1, ...]})                 no names of tasks
    np.save of an object {task: [id, ...]}
    CSV                                             id,<task>,<task>,... (`LabelMatrix.read_csv`)

torch's present (zip) and former format are read. Nothing is unpickled the usual way, so no file can run code.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dmtl.data.benchmarks.pickles import MAX_OPERATIONS, Array, Storage, Tensor, UnreadablePickle, load
from dmtl.data.folder.paths import inner_path, plain_name
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError

TENSOR_COLUMNS = {2: ("semseg", "depth"), 3: ("semseg", "depth", "normals")}
"""What the columns of a tensor are: Cityscapes' two and NYUD-v2's three tasks."""
LIST_COLUMNS = {5: ("semseg", "human_parts", "sal", "normals", "edge")}
"""What the numbers of an image's list are: PASCAL-Context's five tasks."""
MAX_BYTES = 16 << 20
MAX_TASKS = 64
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"
_FORMER = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # torch's number and version 1001, pickled
)

ReadStorage = Callable[[Storage], bytes]


def read_split_table(
    path: str | os.PathLike, tasks: Iterable[str] | None = None, ids: Iterable[str] | None = None
) -> LabelMatrix:
    """The table in a file of one of the formats above; rows sorted by id where the file has no order.

    Args:
        tasks: names of the columns, for a file that stores none; default: those of the published files. Of
            another file, the columns wanted.
        ids: names of the rows, for a file that stores none; default: "train/0", "train/1"... Of another
            file, the rows wanted.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    path = Path(path)
    tasks = None if tasks is None else [str(task) for task in tasks]
    ids = None if ids is None else [str(id) for id in ids]
    data = _start(path)
    reader = next((read for magic, read in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        return LabelMatrix.read_csv(path).subset(ids, tasks)
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: too large, expected a table of at most {MAX_BYTES >> 20} MiB")
    try:
        return _table(path, *reader(data), tasks, ids)
    except DataError:
        raise
    except UnreadablePickle as error:
        raise _not_a_table(path, error) from error
    except Exception as error:  # zipfile and NumPy let many exception types through on damaged files
        raise _not_a_table(path, f"damaged: {type(error).__name__}") from error


def _start(path: Path) -> bytes:
    """All of a file that has a known beginning, up to one byte more than is allowed; else its beginning."""
    try:
        with open(path, "rb") as file:
            data = file.read(32)
            return data + file.read(MAX_BYTES + 1 - len(data)) if data.startswith(tuple(_READERS)) else data
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a table of labels"
        ) from error


def _not_a_table(path: Path, why: object) -> DataError:
    return DataError(f"{path}: {why}, expected a table of labels: CSV or a published split file")


# containers: bytes -> the pickled value, and how to get the bytes of a tensor


def _zip(data: bytes) -> tuple[Any, ReadStorage]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise UnreadablePickle("a zip file without data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist() and _member(archive, folder + "byteorder") != b"little":
            raise UnreadablePickle("numbers that are not little-endian")
        value, _ = load(io.BytesIO(_member(archive, names[0])))

    def read(storage: Storage) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _member(archive, f"{folder}data/{storage.key}")

    return value, read


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise UnreadablePickle("a compressed zip file")  # torch never compresses, and this cannot grow
    return archive.read(info)


def _former(data: bytes) -> tuple[Any, ReadStorage]:
    file = io.BytesIO(data)
    file.seek(len(_FORMER))
    system, _ = load(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnreadablePickle("numbers that are not little-endian")
    value, storages = load(file)
    keys, _ = load(file)
    start = file.tell()

    def read(wanted: Storage) -> bytes:
        at = start
        for key in keys:  # each: its count as 8 bytes, then its numbers
            size = storages[key].count * storages[key].dtype.itemsize
            if storages[key] == wanted:
                return data[at + 8 : at + 8 + size]
            at += 8 + size
        raise UnreadablePickle("a tensor without numbers")

    return value, read


def _npy(data: bytes) -> tuple[Any, ReadStorage]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise UnreadablePickle("an unknown version of .npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != () or dtype.kind != "O":
        raise UnreadablePickle(f"an array of {str(dtype)[:40]} of shape {list(shape)}")
    array, _ = load(file)
    if not isinstance(array, Array) or array.shape != () or len(array.items) != 1:
        raise UnreadablePickle("an array whose contents are not one object")

    def read(storage: Storage) -> bytes:
        raise UnreadablePickle("a tensor in a .npy file")

    return array.items[0], read


_READERS = {_ZIP: _zip, _FORMER: _former, _NPY: _npy}


# contents: the value -> the table


def _table(
    path: Path, value: Any, read: ReadStorage, tasks: list[str] | None, ids: list[str] | None
) -> LabelMatrix:
    if type(value) is not dict or not value:
        raise UnreadablePickle(f"holds {type(value).__name__} without entries by name")
    tensor = value.get("labels_weights")
    if type(tensor) is Tensor and len(value) == 1:
        return _from_tensor(path, tensor.array(read(tensor.storage)), tasks, ids)
    if not all(type(entries) in (list, tuple) for entries in value.values()):
        raise UnreadablePickle("holds neither labels_weights nor lists")
    if sum(map(len, value.values())) > MAX_OPERATIONS:  # a list can be there many times
        raise UnreadablePickle(f"lists of more than {MAX_OPERATIONS} entries")
    kinds = {type(entry) for entries in value.values() for entry in entries}
    if kinds == {str}:
        return _from_tasks(path, value).subset(ids, tasks)
    if kinds and kinds <= {int, float, bool}:
        return _from_images(path, value, tasks, ids)
    raise UnreadablePickle("lists that hold neither ids nor 0 and 1 alone")


def _from_tensor(
    path: Path, table: np.ndarray, tasks: list[str] | None, ids: list[str] | None
) -> LabelMatrix:
    if table.ndim != 2 or 0 in table.shape:
        raise UnreadablePickle(f"labels_weights of shape {list(table.shape)}")
    ids = [f"train/{row}" for row in range(len(table))] if ids is None else ids
    if len(ids) != len(table):
        raise DataError(f"{path}: {len(table)} rows, expected {len(ids)}, one for each image")
    return LabelMatrix(
        ids, _columns(path, table.shape[1], TENSOR_COLUMNS, tasks), _zeros_and_ones(table), str(path)
    )


def _from_images(
    path: Path, value: dict[str, list], tasks: list[str] | None, ids: list[str] | None
) -> LabelMatrix:
    lengths = sorted({len(row) for row in value.values()})
    if len(lengths) > 1:
        raise UnreadablePickle(f"lists of {lengths[0]} and of {lengths[-1]} numbers")
    columns = _columns(path, lengths[0], LIST_COLUMNS, tasks)
    matrix = _zeros_and_ones(np.array(list(value.values())))
    return LabelMatrix(_checked_ids(path, value), columns, matrix, str(path)).subset(ids)


def _from_tasks(path: Path, value: dict[str, list[str]]) -> LabelMatrix:
    tasks = [plain_name(task, f"{path}: name of a task") for task in value]
    ids = sorted({id for listed in value.values() for id in listed})
    if len(tasks) > MAX_TASKS:
        raise UnreadablePickle(f"{len(tasks)} tasks")
    row = {id: number for number, id in enumerate(_checked_ids(path, ids))}
    matrix = np.zeros((len(ids), len(tasks)), bool)
    for column, listed in enumerate(value.values()):
        rows = [row[id] for id in listed]
        if len(set(rows)) != len(rows):
            raise UnreadablePickle(f"an id twice under {tasks[column]!r}")
        matrix[rows, column] = True
    return LabelMatrix(ids, tasks, matrix, str(path))


def _columns(
    path: Path, count: int, published: dict[int, tuple[str, ...]], tasks: list[str] | None
) -> list[str]:
    """Names for `count` columns that have none."""
    if tasks is None and count not in published:
        raise DataError(
            f"{path}: {count} columns without names, expected {' or '.join(map(str, published))} "
            "as published, or the names of the tasks in their order"
        )
    names = list(published[count] if tasks is None else tasks)
    if len(names) != count or len(set(names)) != count:
        raise DataError(
            f"{path}: {count} columns without names, expected as many tasks, got {', '.join(names) or 'none'}"
        )
    return names


def _zeros_and_ones(table: np.ndarray) -> np.ndarray:
    if not ((table == 0) | (table == 1)).all():
        raise UnreadablePickle("numbers that are neither 0 nor 1")
    return table == 1


def _checked_ids(path: Path, ids: Iterable[str]) -> list[str]:
    return [inner_path(id, f"{path}: id") for id in ids]
