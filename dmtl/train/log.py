"""Write the log of a run: one JSON object per line and, if requested, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmtl.errors import ConfigError
from dmtl.runtime.files import float_from_json, json_text, write_text


class RunLog:
    """Append rows to `RUN/log.jsonl`; each row has "event" and "step".

    Args:
        directory: folder of the run.
        resume_step: step from which the run resumes: rows of later steps are removed, and will be written
            again.
        tensorboard: also write events below `RUN/tensorboard`.
        active: False: write nothing, for all processes but the first.
    """

    def __init__(
        self, directory: Path, *, resume_step: int = 0, tensorboard: bool = False, active: bool = True
    ):
        self.path = directory / "log.jsonl"
        self._file = self._writer = None
        if not active:
            return
        kept = [row for row in self.read(self.path) if row["step"] <= resume_step] if resume_step else []
        write_text(self.path, "".join(json_text(row) + "\n" for row in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._writer = _summary_writer(directory / "tensorboard", resume_step) if tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Write one row; numbers in `values` also become TensorBoard scalars."""
        if self._file is not None:
            self._file.write(json_text({"event": event, "step": step, **values}) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in _flat(values):
                self._writer.add_scalar(f"{event}/{name}", value, step)

    def pictures(self, step: int, pictures: dict) -> None:
        """Write pictures, name -> uint8 [H, W, 3], to TensorBoard only."""
        if self._writer is not None:
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    @staticmethod
    def read(path: str | Path) -> list[dict]:
        """Read all complete rows of a log. A partial last line, which a killed run leaves, is skipped."""
        path = Path(path)
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "loss" in row:
                row["loss"] = float_from_json(row["loss"])
            for tasks in (row.get("metrics", {}), *row.get("sources", {}).values()):
                for metrics in tasks.values():
                    metrics.update({name: float_from_json(value) for name, value in metrics.items()})
            rows.append(row)
        return rows


def _flat(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", value


def _summary_writer(directory: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"log.tensorboard = true needs TensorBoard: pip install 'dmtl[tensorboard]' ({error})"
        ) from None
    return SummaryWriter(str(directory), purge_step=purge_step or None)
