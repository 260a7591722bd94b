"""What `convert` and `export` say of the folder they wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from dmtl.cli._common import console, say

if TYPE_CHECKING:
    from dmtl.data.folder.write import Exported


def summarise(splits: Mapping[str, Exported]) -> None:
    """Images, megabytes, labels and the share of their pixels without meaning, by split."""
    table = Table("task")
    for split, made in splits.items():
        table.add_column(split, justify="right")
        if made.written:
            table.add_column("no meaning", justify="right", style="dim")
        for message in made.skipped:
            say(f"skipped: {message}")
        facts = f"{made.images} images, {made.written} of them written now, {made.size / 1e6:.1f} MB"
        if not made.written:
            facts = f"all {made.images} images are there ({made.size / 1e6:.1f} MB), nothing to do"
        say(f"{made.folder} {split}: {facts}")
    for task in next(iter(splits.values())).labels:
        table.add_row(task, *(cell for made in splits.values() for cell in _cells(made, task)))
    console.print(table)


def _cells(made: Exported, task: str) -> list[str]:
    """The number of labels, and the share of pixels without meaning of those written."""
    unknown, pixels = made.unknown[task]
    share = [f"{unknown / pixels:.1%}" if pixels else ""]
    return [str(made.labels[task]), *(share if made.written else [])]
