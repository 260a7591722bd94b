"""`dmtl data fixture`: a tiny data set in the format of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import positional
from dmtl.cli._common import say


@dataclass(frozen=True)
class Fixture:
    """Write a tiny data set in the exact format in which a benchmark is distributed.

    Its pictures are rendered scenes and its labels are theirs. It shows where files belong and what is in
    them, and lets every command run without the data: `dmtl data fixture nyud-13 tiny`, then
    `dmtl data convert tiny folder`.
    """

    name: Annotated[str, *positional("NAME")]
    """pascal-context, nyud-13, nyud-40, nyud-40-mt (older variant), cityscapes-7, cityscapes-19 (either with
    "-label" for the other name of its label folder), cityscapes-raw."""
    folder: Annotated[str, *positional("DIR")]
    """A new or an empty folder."""
    train: int = 6
    """Training images."""
    val: int = 4
    """Validation images."""
    size: tuple[int, int] | None = None
    """Height and width; default: those of the benchmark (a quarter of them for cityscapes-raw)."""
    seed: int = 0
    """Seed of the scenes."""


def run(args: Fixture) -> int:
    from dmtl.data.benchmarks.fixtures import write_fixture

    root = write_fixture(args.name, args.folder, args.train, args.val, args.size, args.seed)
    say(f"wrote {root} ({args.name}: {args.train} training and {args.val} validation images)")
    return 0
