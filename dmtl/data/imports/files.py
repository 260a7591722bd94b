"""Read the JSON and XML files of annotation tools with checked values, and find the images that they name.

Every error is a DataError. Its message begins with the file and says which entry is wrong.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from dmtl.data.folder.paths import inner_path, inside, nfc, read_text
from dmtl.data.images import IMAGE_SUFFIXES
from dmtl.errors import DataError, one_line
from dmtl.text import plural, shortened

MAX_TEXT = 200  # characters of a label's name
LARGEST = 1e9  # upper limit of coordinates, counts and sizes


class Node:
    """A value of a JSON file, and its place in the file: error messages begin with that."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str | os.PathLike):
        self.value, self.where = value, str(where)

    def __getitem__(self, key: str) -> Node:
        found = self.get(key)
        if found is None:
            raise DataError(f"{self.where}: no {key!r}")
        return found

    def get(self, key: str) -> Node | None:
        """Return the value under `key` of an object; None if it is missing or null."""
        if not isinstance(self.value, dict):
            raise self.unlike("an object")
        value = self.value.get(key)
        return None if value is None else Node(value, f"{self.where}: {key}")

    def list(self) -> list[Node]:
        if not isinstance(self.value, list):
            raise self.unlike("a list")
        return [Node(value, f"{self.where}[{n}]") for n, value in enumerate(self.value)]

    def text(self) -> str:
        """Return the value if it can name a label: a printable string, not too long, no spaces around it."""
        text = self.value
        if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_TEXT:
            raise self.unlike("a name")
        if not text or text != text.strip():
            raise self.unlike("a name without spaces around it")
        return text

    def path(self) -> str:
        """Return the value if it can be a path or a URL."""
        if not isinstance(self.value, str) or not self.value:
            raise self.unlike("the name of a file")
        return self.value

    def number(self) -> float:
        value = self.value
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not real or not abs(value) <= LARGEST:  # False for NaN
            raise self.unlike("a finite number")
        return float(value)

    def whole(self) -> int:
        """Return the value if it is a whole number of at least 0; 12.0 counts as one."""
        value = self.number()
        if value < 0 or value != math.floor(value):
            raise self.unlike("a whole number of at least 0")
        return int(value)

    def key(self) -> int | str:
        """Return the value if it can be an id: a whole number (12.0 counts as one) or a string."""
        if isinstance(self.value, float):
            return self.whole()
        if type(self.value) not in (int, str):
            raise self.unlike("a number or a string")
        return self.value

    def numbers(self) -> np.ndarray:
        """Return a list of numbers as float64 [N], or a list of points [x, y] as float64 [N, 2]."""
        try:
            array = np.array(self.value, np.float64) if isinstance(self.value, list) else None
        except (ValueError, TypeError, OverflowError):
            array = None
        if array is None or array.ndim > 2 or not (np.abs(array) <= LARGEST).all():
            raise self.unlike("a list of finite numbers")
        return array

    def unlike(self, expected: str) -> DataError:
        """Return the error that the value is not what was `expected`."""
        return DataError(f"{self.where}: {self.value!r:.60}, expected {expected}")


def read_json(path: Path, what: str) -> Node:
    """Read a JSON file; `what` says in error messages what the file should be."""
    text = read_text(path, what)
    try:
        return Node(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({one_line(error)}), expected {what}") from None


def read_xml(path: Path, what: str) -> Element:
    """Read an XML file; `what` says in error messages what it should be.

    A document type is an error, because its entities could expand to any size.
    """
    parser = package("defusedxml.ElementTree", "import", path)
    try:
        return parser.fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}), expected {what}") from error
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{path}: not readable XML ({one_line(error)}), expected {what}") from None


def attributes(element: Element, where: str) -> Node:
    """Return the attributes of an XML element, with numbers converted."""
    return Node({key: _number(text) for key, text in element.attrib.items()}, where)


def numbers_of(node: Node, separators: str = ",") -> np.ndarray:
    """Return the numbers in a string such as "1.5,2;3,4" as float64 [N]."""
    text = str(node.value)
    for separator in separators:
        text = text.replace(separator, " ")
    return Node([_number(word) for word in text.split()], node.where).numbers()


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def package(name: str, extra: str, where: object) -> ModuleType:
    """Import an optional package.

    Raises:
        DataError: it is not installed; the message names the extra.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.partition(".")[0]
        raise DataError(
            f"{where}: needs the package {needed} ({one_line(error)}): pip install 'dmtl[{extra}]'"
        ) from error


class Images:
    """The image files of a folder, by the names that annotations give them."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder, expected the images; name their folder with --images")

    def path(self, name: str, where: object) -> Path:
        """Return the path of the image called `name`; the file need not exist.

        A name may use "\\" as separator or another Unicode form than the file. It may lack the suffix, like
        CVAT's names of video frames.

        Raises:
            DataError: the name is absolute or leads out of the folder; the message begins with `where`.
        """
        name = PureWindowsPath(name).as_posix()
        path = inside(self.root, self.root / inner_path(name, f"{where}: image file"))
        return path if path.is_file() else self._by_name.get(nfc(name)) or path

    @cached_property
    def _by_name(self) -> dict[str, Path | None]:
        """Map names in NFC, with and without suffix, to files; to None if two files share a name."""
        found: dict[str, Path | None] = {}
        paths = {nfc(path.relative_to(self.root).as_posix()): path for path in self.files()}
        for name, path in paths.items():
            stem = os.path.splitext(name)[0]
            # a.jpg.png is more likely a mask of a.jpg than the image "a.jpg".
            if _suffix(stem) not in IMAGE_SUFFIXES:
                found[stem] = None if stem in found else path
        return found | paths

    def id(self, path: Path) -> str:
        """Return the id of an image in the data set: its path below this folder, without the suffix."""
        return path.relative_to(self.root).with_suffix("").as_posix()

    def files(self, without: Iterable[Path] = (), suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
        """Return all files below the folder with one of `suffixes`, sorted.

        Hidden files and those below the folders `without` are left out. So are data sets in the folder
        format: an earlier import may have written one here.
        """
        skipped = {folder.resolve() for folder in without}
        found: list[Path] = []
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if not _is_skipped(Path(folder, name), skipped)]
            found += (Path(folder, n) for n in files if _suffix(n) in suffixes and n[0] != ".")
        return sorted(found)


def _is_skipped(folder: Path, skipped: set[Path]) -> bool:
    return folder.name[0] == "." or folder.resolve() in skipped or (folder / "dataset.yaml").is_file()


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def left_out(paths: Sequence[Path], noun: str, why: str) -> list[str]:
    """Return a list of one note about files that are left out, with the first three names; [] without
    files."""
    names = shortened((path.name for path in paths), 3)
    return [f"left out: {plural(len(paths), noun)} {why} ({names})"] if paths else []


def unique_names(nodes: Iterable[tuple[str, object]], what: str) -> Iterator[str]:
    """Yield the names of (name, place) pairs.

    Raises:
        DataError: a name occurs twice; `what` says what has that name.
    """
    places: dict[str, object] = {}
    for name, where in nodes:
        if name in places:
            raise DataError(f"{where}: a second {what} is called {name!r}, expected different names")
        places[name] = where
        yield name
