"""Read tables of visible labels: published files, or our CSV. The content decides the format, not the file
name.

    torch.save({"labels_weights": tensor [N, T]})   no names: a row is an image, a column a task
    torch.save({id: [0 or 1, ...]})                 no names of tasks
    np.save of an object {task: [id, ...]}
    CSV                                             id,<task>,<task>,... (`LabelMatrix.read_csv`)

torch's current format (zip) and the former one are read. Unpickling can only call the functions in `_ALLOWED`
and those that `torch.load(weights_only=True)` allows, so no file can run code.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.data.folder.paths import inner_path, plain_name
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError

TENSOR_COLUMNS = {2: ("semseg", "depth"), 3: ("semseg", "depth", "normals")}
"""Number of columns of a published tensor -> their tasks: Cityscapes has two and NYUD-v2 three."""
LIST_COLUMNS = {5: ("semseg", "human_parts", "sal", "normals", "edge")}
"""Number of entries in the published list of an image -> their tasks: PASCAL-Context has five."""
MAX_BYTES = 16 << 20
MAX_TASKS = 64
MAX_ENTRIES = 4_000_000
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"
_FORMER = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # torch's number and version 1001, pickled
)


class _NotATable(ValueError):
    """The file is not a table. The message says what it is instead."""


def read_split_table(
    path: str | os.PathLike, tasks: Iterable[str] | None = None, ids: Iterable[str] | None = None
) -> LabelMatrix:
    """Read a table in one of the formats above; rows are sorted by id if the file has no order.

    Args:
        path: the file.
        tasks: if the file does not name its columns: their names; None: those of the published files. If it
            does: the columns to read; None: all.
        ids: if the file does not name its rows: their names; None: "train/0", "train/1"... If it does: the
            rows to read; None: all.

    Raises:
        DataError: the file is not such a table; the message names it and says what is wrong.
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
        return _table(path, reader(data), tasks, ids)
    except DataError:
        raise
    except Exception as error:  # torch, NumPy and pickle let many exception types through on damaged files
        raise DataError(
            f"{path}: {_reason(error)}, expected a table of labels: CSV or a published split file"
        ) from error


def _start(path: Path) -> bytes:
    """Read a file, up to one byte more than allowed; if its beginning is that of no known format, only
    that."""
    try:
        with open(path, "rb") as file:
            data = file.read(32)
            return data + file.read(MAX_BYTES + 1 - len(data)) if data.startswith(tuple(_READERS)) else data
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a table of labels"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, _NotATable):
        return str(error)
    refused = re.search(r"GLOBAL (\S{1,80})", str(error))
    return _not_allowed(refused[1]) if refused else f"damaged ({type(error).__name__})"


def _not_allowed(name: str) -> str:
    return f"refers to {name!r}, which is not allowed"


# containers: bytes -> the pickled value


def _zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise _NotATable("a zip file that is larger when unpacked")
    return _torch(data)


def _torch(data: bytes) -> Any:
    names: list[Callable | tuple[Callable, str]] = [(function, name) for name, function in _ALLOWED.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(names):
        warnings.simplefilter("ignore")  # damaged files cause some about pickle versions
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _npy(data: bytes) -> Any:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise _NotATable("an unknown version of .npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != () or dtype.kind != "O":
        raise _NotATable(f"an array of {str(dtype)[:40]} of shape {list(shape)}")
    start = file.tell()
    for operation, argument, _ in pickletools.genops(file):  # also rejects lengths beyond the end of file
        if "PUT" in operation.name and argument is not None and argument > len(data):
            raise _NotATable("damaged")  # pickle would allocate as many objects as it claims
    file.seek(start)
    array = _Unpickler(file).load()
    if type(array) is not _Array or array.shape != () or len(array.items) != 1:
        raise _NotATable("an array whose contents are not one object")
    return array.items[0]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise _NotATable(_not_allowed(full[:80]))
        return _ALLOWED[full]


class _DType:
    """The dtype of objects, text or numbers, as a pickle describes it."""

    def __init__(self, code: str, *flags: bool):
        if not re.fullmatch(r"[OUbiuf]\d{1,5}", code):
            raise ValueError(code)
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(state[1])
        self.order = state[1]


class _Array:
    """An array of objects, as a pickle describes it; it allocates only what the file contains."""

    def __init__(self, *arguments: Any):
        self.shape: tuple[int, ...] = (0,)
        self.items: list = []

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, _, _, self.items = state


def _scalar(dtype: _DType, data: bytes) -> str | int | float | bool:
    return np.frombuffer(data, dtype.order + dtype.code).reshape(()).item()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[str, Callable] = {
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
    # the old and the current name of one module
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
}
_READERS = {_ZIP: _zip, _FORMER: _torch, _NPY: _npy}


# contents: the value -> the table


def _table(path: Path, value: Any, tasks: list[str] | None, ids: list[str] | None) -> LabelMatrix:
    if type(value) is not dict or not value:
        raise _NotATable(f"holds {type(value).__name__}, not entries by name")
    tensor = value.get("labels_weights")
    if type(tensor) is Tensor and len(value) == 1:
        if tensor.numel() > MAX_ENTRIES:  # a view can repeat its elements
            raise _NotATable(f"a tensor of {tensor.numel()} numbers")
        return _from_tensor(path, tensor.numpy(), tasks, ids)
    if not all(type(entries) in (list, tuple) for entries in value.values()):
        raise _NotATable("holds neither labels_weights nor lists")
    if sum(map(len, value.values())) > MAX_ENTRIES:  # a list can be referenced many times
        raise _NotATable(f"lists of more than {MAX_ENTRIES} entries")
    kinds = {type(entry) for entries in value.values() for entry in entries}
    if kinds == {str}:
        return _from_tasks(path, value).subset(ids, tasks)
    if kinds and kinds <= {int, float, bool}:
        return _from_images(path, value, tasks, ids)
    raise _NotATable("lists of neither ids nor only 0 and 1")


def _from_tensor(
    path: Path, table: np.ndarray, tasks: list[str] | None, ids: list[str] | None
) -> LabelMatrix:
    if table.ndim != 2 or 0 in table.shape:
        raise _NotATable(f"labels_weights of shape {list(table.shape)}")
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
        raise _NotATable(f"lists of {lengths[0]} and of {lengths[-1]} numbers")
    columns = _columns(path, lengths[0], LIST_COLUMNS, tasks)
    matrix = _zeros_and_ones(np.array(list(value.values())))
    return LabelMatrix(_checked_ids(path, value), columns, matrix, str(path)).subset(ids)


def _from_tasks(path: Path, value: dict[str, list[str]]) -> LabelMatrix:
    tasks = [plain_name(task, f"{path}: name of a task") for task in value]
    ids = sorted({id for listed in value.values() for id in listed})
    if len(tasks) > MAX_TASKS:
        raise _NotATable(f"{len(tasks)} tasks")
    row = {id: number for number, id in enumerate(_checked_ids(path, ids))}
    matrix = np.zeros((len(ids), len(tasks)), bool)
    for column, listed in enumerate(value.values()):
        rows = [row[id] for id in listed]
        if len(set(rows)) != len(rows):
            raise _NotATable(f"an id twice under {tasks[column]!r}")
        matrix[rows, column] = True
    return LabelMatrix(ids, tasks, matrix, str(path))


def _columns(
    path: Path, count: int, published: Mapping[int, tuple[str, ...]], tasks: list[str] | None
) -> list[str]:
    """Return names for `count` unnamed columns."""
    if tasks is None and count not in published:
        raise DataError(
            f"{path}: {count} columns without names, expected {' or '.join(map(str, published))} "
            "as published, or the names of the tasks in their order"
        )
    names = list(published[count] if tasks is None else tasks)
    if len(names) != count or len(set(names)) != count:
        raise DataError(
            f"{path}: {count} columns without names, expected one task each, got {', '.join(names) or 'none'}"
        )
    return names


def _zeros_and_ones(table: np.ndarray) -> np.ndarray:
    if not ((table == 0) | (table == 1)).all():
        raise _NotATable("numbers that are neither 0 nor 1")
    return table == 1


def _checked_ids(path: Path, ids: Iterable[str]) -> list[str]:
    return [inner_path(id, f"{path}: id") for id in ids]
