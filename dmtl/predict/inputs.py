"""Find the image and video files below some paths, and choose the names of their outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dmtl.data.images import IMAGE_SUFFIXES
from dmtl.predict import video
from dmtl.predict.maps import holds_maps

SUFFIXES = IMAGE_SUFFIXES + video.SUFFIXES
_HIDDEN = "hidden files and folders are not predicted"
_MAPS = "holds maps that dmtl wrote, expected images or videos"
_NOTHING = "no images or videos, expected files such as .jpg, .png or .mp4"


@dataclass(frozen=True)
class Input:
    """One input file.

    Attributes:
        path: the file.
        name: name of its outputs, such as "street/0001" (with `/` on every system): outputs of an image add a
            suffix, those of a video's frame add the frame's number.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in video.SUFFIXES


@dataclass(frozen=True)
class Failure:
    """An input without output, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """Files or folders below the requested ones that are not predicted, all for the same reason.

    Attributes:
        kind: their suffix, or another property that they share.
        count: how many there are.
        first: path of the first one.
        reason: why they are not predicted.
    """

    kind: str
    count: int
    first: str
    reason: str

    def __str__(self) -> str:
        more = ", ..." if self.count > 1 else ""
        return f"{self.count:,} {self.kind} ({Path(self.first).name}{more}): {self.reason}"


def find_inputs(
    paths: Iterable[str | os.PathLike], out_dir: str | os.PathLike
) -> tuple[list[Input], list[Failure], list[LeftOut]]:
    """Find every image and video below `paths`.

    A path to a file is an input whatever its suffix. Folders are searched to any depth for files with known
    suffixes. Hidden entries, links to folders, folders that `dmtl predict` wrote, and `out_dir` are left out.
    In a data set in the folder format, only `images` is searched.

    The name of an input is its file name without suffix. If it was found in a folder, the name is its path
    below that folder, or below the folder's `images` if that is a data set. If two inputs would get the same
    name, all names become paths below the deepest folder that contains every input. If two files differ only
    in their suffixes, or a video lies next to a folder of its name, their names keep the suffix. If two names
    are still equal, a number makes them different.

    Returns:
        The inputs, sorted within each folder; the paths that led to no input; and what was left out.
    """
    found: dict[Path, Path] = {}  # file -> folder to which its name is relative; each file counts once
    failures: list[Failure] = []
    out_dir = Path(out_dir).resolve()
    walk = _Walk(out_dir, failures)
    for path in map(Path, paths):
        if path.is_dir():
            root = path.resolve()
            if _in_maps(root):
                failures.append(Failure(str(path), _MAPS))
                continue
            files = list(walk(root))
            root = root / "images" if _is_dataset(root) else root
            if not files:
                failures.append(Failure(str(path), _NOTHING))
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
    inputs = [Input(file, name) for file, name in zip(found, names, strict=True)]
    return inputs, failures, walk.left_out()


def why_no_inputs(folder: str | os.PathLike, out_dir: str | os.PathLike) -> str | None:
    """Return why `find_inputs` finds nothing in a folder; None if it does. Stops at the first input."""
    root, failures = Path(folder).resolve(), list[Failure]()
    if _in_maps(root):
        return _MAPS
    if next(_Walk(Path(out_dir).resolve(), failures)(root), None) is not None:
        return None
    return failures[0].reason if failures else _NOTHING


def _in_maps(root: Path) -> bool:
    """Return whether a folder is one that `dmtl predict` wrote, or in one."""
    return any(holds_maps(folder) for folder in (root, *root.parents))


def _is_dataset(folder: Path) -> bool:
    """Return whether a folder is a data set in the folder format, whose labels are not predicted."""
    return (folder / "dataset.yaml").is_file() and (folder / "images").is_dir()


def _common_folder(folders: Iterable[Path]) -> Path:
    return Path(os.path.commonpath(list(folders)))


class _Walk:
    """Find images and videos in folders, and count what is left out."""

    def __init__(self, out_dir: Path, failures: list[Failure]):
        self.out_dir, self.failures = out_dir, failures
        self._passed: dict[tuple[str, str], dict[Path, None]] = {}  # (kind, reason) -> paths, each once

    def __call__(self, folder: Path) -> Iterator[Path]:
        for here, folders, files in os.walk(folder, onerror=self._unreadable):
            if _is_dataset(Path(here)):
                for name in sorted({*folders, *files} - {"images"}):
                    self._pass_by(
                        Path(here, name), "files and folders of a data set", "only its images are inputs"
                    )
                folders[:], files = ["images"], []
            folders[:] = sorted(name for name in folders if self._enters(Path(here, name)))
            yield from (path for name in sorted(files) if self._takes(path := Path(here, name)))

    def left_out(self) -> list[LeftOut]:
        """Return what was left out so far, the most frequent first."""
        groups = sorted(self._passed.items(), key=lambda group: -len(group[1]))
        return [LeftOut(kind, len(paths), str(next(iter(paths))), reason) for (kind, reason), paths in groups]

    def _enters(self, folder: Path) -> bool:
        if folder == self.out_dir:
            return False
        if folder.name.startswith("."):
            return self._pass_by(folder, "hidden", _HIDDEN)
        if folder.is_symlink():
            return self._pass_by(folder, "links to folders", "links are not followed, pass the folder itself")
        return not holds_maps(folder) or self._pass_by(
            folder, "folders of maps", "dmtl wrote these, they are not predicted"
        )

    def _takes(self, file: Path) -> bool:
        if file.name.startswith("."):
            return self._pass_by(file, "hidden", _HIDDEN)
        if file.name.lower().endswith(SUFFIXES):
            return True
        kind = file.suffix.lower() or "without suffix"
        return self._pass_by(file, kind, "not a suffix of images or videos that can be read")

    def _pass_by(self, path: Path, kind: str, reason: str) -> bool:
        self._passed.setdefault((kind, reason), {})[path] = None
        return False

    def _unreadable(self, error: OSError) -> None:
        self.failures.append(
            Failure(str(error.filename), f"cannot be listed ({error.strerror}), expected a folder of images")
        )


def _names(paths: list[PurePosixPath]) -> list[str]:
    # Names are compared without case, because A.png and a.png are the same file on some file systems.
    stems = [str(p.with_suffix("")) for p in paths]
    twice = Counter(stem.lower() for stem in stems)
    folders = {str(folder).lower() for path in paths for folder in path.parents}

    def clash(path: PurePosixPath, name: str) -> bool:
        """Return whether the frames of a video would be written into a folder with other outputs."""
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
