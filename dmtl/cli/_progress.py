"""Progress of a command: bars on a terminal, plain lines in a log file."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dmtl.cli._common import console, say
from dmtl.text import duration, fixed, number

if TYPE_CHECKING:
    from dmtl.evaluation.scoring import Metrics
    from dmtl.tasks import Task

INTERVAL = 60.0  # seconds between two plain lines at most
STEPS = "steps"  # unit of the lines of a training
_PAUSE = 1.0  # seconds between two looks at the clock

Update = Callable[..., None]
"""`update(done, total, note="", event="")`: a note is shown with the numbers, an event only by plain lines,
which print it at once."""


class PlainLine:
    """Progress of one loop as plain lines: one for every event, and one a minute while it runs.

    Args:
        label: begins every line.
        unit: what is counted, in the plural.
        say: prints a line.
        clock: returns seconds.
    """

    def __init__(
        self,
        label: str,
        unit: str = "",
        say: Callable[[str], object] = say,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label, self._unit, self._say, self._clock = label, unit, say, clock
        self._printed = clock()
        self._first: tuple[float, int] | None = None  # when, and how many were done
        self._done, self._total, self._note = 0, 0, ""

    def __call__(self, done: int, total: int, note: str = "", event: str = "") -> None:
        if self._first is None:
            self._first = self._clock(), done
        self._done, self._total, self._note = done, total, note
        if event:
            self._print(event)

    def tick(self) -> None:
        """Print a line if the last one is a minute old."""
        running = self._first is not None and self._done < self._total
        if running and self._clock() - self._printed >= INTERVAL:
            self._print()

    def _print(self, event: str = "") -> None:
        assert self._first is not None
        self._printed = self._clock()
        seconds, done = self._printed - self._first[0], self._done - self._first[1]
        parts = [f"{self._label}: {self._done:,} of {self._total:,} {self._unit}".rstrip()]
        parts += [self._note] if self._note else []
        if done and seconds > 0:
            parts.append(f"{number(done / seconds, 2)} {self._unit}".rstrip() + "/s")
            if left := self._total - self._done:
                parts.append(f"{duration(left * seconds / done)} left")
        self._say(", ".join(parts) + (f"; {event}" if event else ""))


@contextmanager
def progress(stderr: bool = False) -> Iterator[Callable[..., Update]]:
    """Yield a function `(label, unit="") -> Update` that adds a progress bar, or plain lines if the output is
    not a terminal.

    Args:
        stderr: write there, and clear the bars at the end.
    """
    where = Console(stderr=True) if stderr else console
    if not where.file.isatty():
        with _plain(where) as new_line:
            yield new_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=where, transient=stderr) as bars:

        def new_bar(label: str, unit: str = "") -> Update:
            bar = bars.add_task(label, total=None, note="")

            def update(done: int, total: int, note: str = "", event: str = "") -> None:
                bars.update(bar, completed=done, total=total, note=note)

            return update

        yield new_bar


@contextmanager
def _plain(where: Console) -> Iterator[Callable[..., Update]]:
    """Yield a function that adds a `PlainLine`; a thread makes them tick, however long a step takes."""
    lines: list[PlainLine] = []
    ended = threading.Event()

    def new_line(label: str, unit: str = "") -> Update:
        lines.append(PlainLine(label, unit, lambda text: say(text, where)))
        return lines[-1]

    def tick() -> None:
        while not ended.wait(_PAUSE):
            for line in list(lines):
                line.tick()

    thread = threading.Thread(target=tick, name="dmtl-progress", daemon=True)
    thread.start()
    try:
        yield new_line
    finally:
        ended.set()
        thread.join()


def bar(label: str, unit: str = "") -> Callable[[Sequence], Iterable]:
    """Return a function that shows the progress of a loop over a sequence."""

    def track(items: Sequence) -> Iterable:
        if not len(items):
            return
        with progress() as new_bar:
            update = new_bar(label, unit)
            for done, item in enumerate(items):
                update(done, len(items))
                yield item
            update(len(items), len(items))

    return track


class TrainingProgress:
    """Shows the steps of one run, and its evaluations.

    Args:
        tasks: those of the model, or more.
    """

    def __init__(self, update: Update, tasks: Mapping[str, Task] | None = None):
        self._update, self._tasks, self._note = update, tasks or {}, ""

    def on_step(self, step: int, steps: int, loss: float) -> None:
        self._note = f"loss {'-' if loss != loss else f'{loss:.3g}'}"
        self._update(step, steps, self._note)

    def on_eval(self, step: int, steps: int, metrics: Metrics) -> None:
        from dmtl.evaluation.scoring import primary_metrics

        primary = primary_metrics(metrics, self._tasks).items()
        shown = [f"{task} {metric} {fixed(value)}" for task, (metric, value, _) in primary]
        self._update(step, steps, self._note, event=", ".join(shown) or "evaluated")


class Relay:
    """Print the plain lines that `dmtl train` writes to the logs of other processes, at each call.

    Args:
        logs: the label of a run's lines (its folder) -> its log. What is in the logs already is skipped.
        say: prints a line.
    """

    def __init__(self, logs: Mapping[str, Path], say: Callable[[str], object] = say):
        self._logs, self._say = logs, say
        self._read = {path: path.stat().st_size if path.is_file() else 0 for path in logs.values()}

    def __call__(self) -> None:
        for label, path in self._logs.items():
            if not path.is_file() or path.stat().st_size == self._read[path]:
                continue
            with open(path, "rb") as file:
                file.seek(self._read[path])
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if re.match(rf"{re.escape(label)}: [\d,]+ of [\d,]+ {STEPS}\b", line):
                    self._say(line)
