"""A progress bar with images per second."""

from __future__ import annotations

from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, wanted: bool | None):
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
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("predict", total=total)
        yield lambda: bar.advance(task)
