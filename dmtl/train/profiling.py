"""Profile training steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dmtl.runtime.files import write_text

WARM_UP, RECORDED = 3, 3


class Profile:
    """Record a few steps after a warm-up; write `trace.json.gz` (for Chrome or Perfetto) and `table.txt`.

    Args:
        folder: folder to write to.
        step: number of the run's first step.
        say: called with a line for the user when the files are written.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], object]):
        self.folder, self.say, self.first = folder, say, step
        activities, self._by = [ProfilerActivity.CPU], "cpu_time_total"
        if torch.cuda.is_available():
            activities, self._by = [*activities, ProfilerActivity.CUDA], "device_time_total"
        plan = schedule(skip_first=0, wait=WARM_UP - 1, warmup=1, active=RECORDED, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profiler.start()
        self._written = False

    def step(self) -> None:
        """Note the end of a step; must be called after every step."""
        if not self._written:
            self._profiler.step()

    def close(self) -> None:
        """End the profile, and report if the run was too short; must be called at the end of the run."""
        if not self._written:
            self._profiler.stop()
        if not self._written:
            self.say(f"no profile: a run of at least {WARM_UP + RECORDED} steps is needed")

    def _write(self, profiler: profile) -> None:
        self._written = True
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        first = self.first + WARM_UP + 1
        table = profiler.key_averages().table(self._by, row_limit=40)
        write_text(self.folder / "table.txt", f"Steps {first} to {first + RECORDED - 1}\n{table}\n")
        self.say(f"profile: {self.folder / 'table.txt'} and trace.json.gz")
