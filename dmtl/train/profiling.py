"""Where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dmtl.runtime.files import write_text

WARM_UP, RECORDED = 3, 3


class Profile:
    """Records a few steps once a run is warm; writes `trace.json.gz` (Chrome, Perfetto) and `table.txt`.

    Args:
        folder: where to.
        say: told when the files are there.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], object]):
        self.folder, self.say, self.first = folder, say, step
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(skip_first=0, wait=WARM_UP - 1, warmup=1, active=RECORDED, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profiler.start()
        self._written = False

    def step(self) -> None:
        """After every step."""
        if not self._written:
            self._profiler.step()

    def close(self) -> None:
        """At the end of the run; a run too short to be recorded is told so."""
        if not self._written:
            self._profiler.stop()
        if not self._written:
            self.say(f"no profile: a run of at least {WARM_UP + RECORDED} steps is needed")

    def _write(self, profiler: profile) -> None:
        self._written = True
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        first = self.first + WARM_UP + 1
        write_text(
            self.folder / "table.txt",
            f"Steps {first} to {first + RECORDED - 1}; milliseconds for each step.\n\n{_table(profiler)}",
        )
        self.say(f"profile: {self.folder / 'table.txt'} and trace.json.gz")


def _table(profiler: profile) -> str:
    """The stages, then the operators that took longest themselves."""
    rows = profiler.key_averages()
    on_device = any(row.self_device_time_total for row in rows)

    def total(row: Any) -> float:
        return row.device_time_total if on_device else row.cpu_time_total

    def own(row: Any) -> float:
        return row.self_device_time_total if on_device else row.self_cpu_time_total

    stages = [row for row in rows if row.key.startswith("dmtl: ")]
    operators = sorted((row for row in rows if own(row) > 0 and row not in stages), key=own, reverse=True)
    lines = [f"{'stage':<48}{'ms':>10}{'calls':>8}"]
    lines += [_line(row.key, total(row), row.count) for row in sorted(stages, key=total, reverse=True)]
    lines += ["", f"{'operator, its own time':<48}{'ms':>10}{'calls':>8}"]
    lines += [_line(row.key, own(row), row.count) for row in operators[:30]]
    return "\n".join(lines) + "\n"


def _line(name: str, microseconds: float, count: int) -> str:
    return f"{name[:46]:<48}{microseconds / 1e3 / RECORDED:>10.2f}{count / RECORDED:>8.1f}"
