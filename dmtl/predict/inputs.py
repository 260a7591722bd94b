"""From the paths on a command line to image and video files, each with a name of its own for its outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dmtl.data.images import IMAGE_SUFFIXES
from dmtl.predict import video

SUFFIXES = IMAGE_SUFFIXES + video.SUFFIXES


@dataclass(frozen=True)
class Input:
    """One file. The outputs of an image are called `name` ("street/0001", with `/` on every system) plus
    suffix, those of a video's frames `name` plus the frame's number."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in video.SUFFIXES


@dataclass(frozen=True)
class Failure:
    """An input that gave no output, and why."""

    path: str
    reason: str


def find_inputs(
    paths: Iterable[str | os.PathLike], out_dir: str | os.PathLike
) -> tuple[list[Input], list[Failure]]:
    """Every image and video below `paths`, sorted within each folder, and the paths that lead to none.

    Files are taken whatever their suffix; folders are searched to any depth for known suffixes, without
    hidden entries, links to folders, and `out_dir`. A file is named by its file name, a file found in a
    folder by its path below that folder. Where two inputs would so get one name, all names are paths below
    the deepest folder that holds every input; two files that differ in nothing but their suffix keep it in
    their names, and so does a video beside a folder of its name.
    """
    found: dict[Path, Path] = {}  # file -> the folder that its name starts from; given twice, predicted once
    failures: list[Failure] = []
    out_dir = Path(out_dir).resolve()
    for path in map(Path, paths):
        if path.is_dir():
            root = path.resolve()
            files = list(_walk(root, out_dir, failures))
            if not files:
                failures.append(
                    Failure(
                        str(path), f"no images or videos, expected files that end in {', '.join(SUFFIXES)}"
                    )
                )
        elif os.path.exists(path):
            root = path.parent.resolve()
            files = [root / path.name]
        else:
            failures.append(
                Failure(str(path), "does not exist, expected an image, a video or a folder of them")
            )
            continue
        for file in files:
            found.setdefault(file, root)
    short = [file.relative_to(root) for file, root in found.items()]
    if len({str(name).lower() for name in short}) < len(short):
        short = [file.relative_to(_common_folder(found.values())) for file in found]
    names = _names([PurePosixPath(*name.parts) for name in short])
    return [Input(file, name) for file, name in zip(found, names, strict=True)], failures


def _common_folder(folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath(list(folders)))


def _walk(folder: Path, out_dir: Path, failures: list[Failure]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        failures.append(
            Failure(str(error.filename), f"cannot be listed ({error.strerror}), expected a folder of images")
        )

    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and Path(here, f) != out_dir)
        yield from (
            Path(here, f) for f in sorted(files) if not f.startswith(".") and f.lower().endswith(SUFFIXES)
        )


def _names(paths: list[PurePosixPath]) -> list[str]:
    # Compared without case: on some file systems A.png and a.png are one file.
    stems = [str(p.with_suffix("")) for p in paths]
    twice = Counter(stem.lower() for stem in stems)
    folders = {str(folder).lower() for path in paths for folder in path.parents}

    def clash(path: PurePosixPath, name: str) -> bool:
        """A video's frames would go into a folder that holds others."""
        return path.suffix.lower() in video.SUFFIXES and name.lower() in folders

    kept = [twice[stem.lower()] > 1 or clash(p, stem) for p, stem in zip(paths, stems, strict=True)]
    names = [str(p) if keep else stem for p, stem, keep in zip(paths, stems, kept, strict=True)]
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 2
        while names[i].lower() in taken or clash(paths[i], names[i]):
            names[i] = f"{name}_{number}"
            number += 1
        taken.add(names[i].lower())
    return names
