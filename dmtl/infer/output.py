"""The folder that predictions go to, and the account of what was written there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from dmtl.errors import DataError
from dmtl.files import write_atomically
from dmtl.infer.inputs import Failure

FORMAT = "dmtl maps 1"
RESERVED = ("pictures", "overview")


@dataclass
class Summary:
    """What `predict_files` did.

    `ok` is false when any input failed; the command line then exits with a non-zero status.
    """

    out_dir: Path
    written: list[str] = field(default_factory=list)  # names of the images predicted
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        lines = [
            f"{len(self.written)} image{'' if len(self.written) == 1 else 's'} predicted into {self.out_dir}"
        ]
        if self.written and self.seconds > 0:
            lines[0] += f" ({len(self.written) / self.seconds:.2f} images/s)"
        if self.failures:
            lines.append(f"{len(self.failures)} failed:")
            lines += [f"  {f.path}: {f.reason}" for f in self.failures]
        return "\n".join(lines)


def output_folder(out_dir: str | os.PathLike) -> Path:
    """Refuses a folder with foreign content: `--out` on a data set would overwrite its labels."""
    path = Path(out_dir)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file, expected a folder for the maps")
    if path.is_dir() and any(path.iterdir()) and not _is_ours(path / "maps.json"):
        raise DataError(
            f"{path}: holds other files, expected a new or empty folder, or an earlier output of predict"
        )
    return path


def _is_ours(index: Path) -> bool:
    try:
        return json.loads(index.read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))
