"""A progress bar with images per second and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """Counts images; a video counts as one until it is known how many frames it has."""

    def __init__(self, bar, task, total: int):
        self._bar, self._task, self._total = bar, task, total
        self._videos: dict[str, int] = {}

    def advance(self) -> None:
        """One image or frame is done."""
        self._bar.advance(self._task)

    def expect(self, video: str, frames: int) -> None:
        """So many frames are to come of this video, the first time that it is said."""
        if video not in self._videos:
            self._set(video, frames)

    def finish(self, video: str, frames: int) -> None:
        """So many frames there were."""
        self._set(video, frames)

    def _set(self, video: str, frames: int) -> None:
        self._total += frames - self._videos.get(video, 1)
        self._videos[video] = frames
        self._bar.update(self._task, total=self._total)


@contextmanager
def progress_bar(total: int, wanted: bool | None) -> Iterator[Bar]:
    """On stderr, where that is a terminal or where it is wanted."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task):
            return Text(f"{task.speed:.1f} images/s" if task.speed else "")

    console = Console(stderr=True, force_terminal=wanted)
    hidden = not console.is_terminal or total == 0
    columns = (
        TextColumn("predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        yield Bar(bar, bar.add_task("predict", total=total), total)
