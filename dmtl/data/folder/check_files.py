"""Check the files of a data set in the folder format, regardless of their content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dmtl.data.folder import manifest
from dmtl.data.folder.check import Problem
from dmtl.data.folder.dataset import Folder, read_split
from dmtl.data.folder.description import read_description
from dmtl.data.folder.manifest import Entry
from dmtl.data.folder.paths import (
    find_files,
    foreign_files,
    inside,
    missing_folder,
    nfc,
    read_ids,
    stray_folders,
)
from dmtl.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from dmtl.data.parallel import in_parallel
from dmtl.errors import DataError


def check_files(
    root: str | os.PathLike,
    *,
    workers: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> list[Problem]:
    """Return the problems of the files of a data set.

    These are links out of the folder, ids without an image, files that belong to no split, files of types
    that are not read, folders of tasks that do not exist, and folders that nothing reads. If there is a
    `manifest.jsonl`, they include files that are missing, were changed or are not in the manifest.

    Args:
        root: folder of the data set.
        workers: processes that read files to compare their SHA-256; 0: use this process.
        progress: wraps the loop over the entries of the manifest.
    """
    root = Path(root)
    description = read_description(root)
    folders = {"images": IMAGE_SUFFIXES, **dict.fromkeys(description["tasks"], LABEL_SUFFIXES)}
    folders |= {description["boundaries"]: (".png",)} if "boundaries" in description else {}
    every = {folder: {f"{folder}/{p}" for _, p in foreign_files(root / folder, (), ())} for folder in folders}
    files = {path for folder, paths in every.items() for path in paths if _suffix(path) in folders[folder]}
    problems = list(_links(root))
    # None if a list cannot be read: its ids would seem to belong to no split.
    listed: set[str] | None = set()
    for path in sorted((root / "splits").glob("*.txt")):
        try:
            ids = read_ids(inside(root, path))
        except DataError as error:
            problems.append(Problem.of(error, "split"))
            listed = None
            continue
        if listed is not None:
            listed |= set(ids)
        try:
            images = find_files(inside(root, root / "images"), IMAGE_SUFFIXES, ids)
        except DataError as error:
            problems.append(Problem.of(error, "split"))
            continue
        problems += [
            Problem(
                "split",
                str(path),
                f"id {id!r} has no image, expected images/{id}{IMAGE_SUFFIXES[0]} or the like",
            )
            for id in ids
            if id not in images
        ]
    problems += [
        Problem("unlisted", str(root / path), "its id is in no list of splits/")
        for path in sorted(files)
        if listed is not None and _id(path) not in listed
    ]
    problems += [
        Problem("unread", str(root / path), f"is not read, expected one of {', '.join(folders[folder])}")
        for folder, paths in every.items()
        for path in sorted(paths - files)
    ]
    problems += [
        Problem("folder", str(root / task), wrong)
        for task in description["tasks"]
        if (wrong := missing_folder(root, task, folders)) is not None
    ]
    problems += [
        Problem("stray", str(root / name), "is not read, because no task in dataset.yaml has this name")
        for name in stray_folders(root, folders)
    ]
    return problems + _recorded(root, files, listed, workers, progress)


def readable_part(root: str | os.PathLike, split: str) -> Folder:
    """Open a split without the ids that have no image: `check_files` reports them, `Folder` would raise."""
    root = Path(root)
    listed = read_split(root, split)
    images = find_files(inside(root, root / "images"), IMAGE_SUFFIXES, listed)
    return Folder(root, split, ids=[id for id in listed if id in images])


def _recorded(
    root: Path,
    files: set[str],
    listed: set[str] | None,
    workers: int,
    progress: Callable[[Sequence], Iterable],
) -> list[Problem]:
    """Return the differences between the files and the manifest."""
    try:
        entries = manifest.read_manifest(root)
    except DataError as error:
        return [Problem.of(error, "manifest")]
    if not entries:
        return []
    problems: list[Problem] = []
    for _, found in zip(progress(entries), in_parallel(partial(_compare, root), entries, workers)):
        problems += found
    named = {nfc(path) for entry in entries for path in entry.files}
    problems += [
        Problem("manifest", str(root / path), f"is not in {manifest.NAME}")
        for path in sorted(path for path in files if nfc(path) not in named)
    ]
    problems += [
        Problem("manifest", str(root / manifest.NAME), f"{entry.id!r} is in no list of splits/")
        for entry in entries
        if listed is not None and entry.id not in listed
    ]
    return problems


def _compare(root: Path, entry: Entry) -> list[Problem]:
    """Return the differences between the files of an entry and what the entry says."""
    wrong = {name: _difference(root, name, *recorded) for name, recorded in entry.files.items()}
    return [Problem("manifest", str(root / name), what) for name, what in wrong.items() if what is not None]


def _difference(root: Path, name: str, size: int, digest: str) -> str | None:
    try:
        found = manifest.size_of(root, name)
        if found is None:
            return "is missing, but listed in manifest.jsonl"
        if found != size:
            return f"has {found} bytes, expected {size} as converted"
        if manifest.digest_of((root / name).read_bytes())[1] != digest:
            return "has another SHA-256 than in manifest.jsonl"
    except DataError:
        return None  # a link out of the data set is reported separately
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _id(path: str) -> str:
    """Return the id in a path `<folder>/<id>.<suffix>`."""
    return nfc(os.path.splitext(path.partition("/")[2])[0])


def _links(root: Path) -> Iterator[Problem]:
    for parent, folders, names in os.walk(root):
        for path in (Path(parent, name) for name in sorted(folders + names)):
            if path.is_symlink():
                try:
                    inside(root, path)
                except DataError as error:
                    yield Problem.of(error, "link")
