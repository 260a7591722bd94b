"""`dmtl data`: look at a data set, check it, choose labels, convert, export.

A subcommand is a module here with a dataclass of options and `run(options) -> exit status`.
"""

from __future__ import annotations

from dmtl.cli._arguments import parse_subcommand
from dmtl.cli.data import check, convert, export, fixture, labels, show

SUBCOMMANDS = {
    "check": (check.Check, check.run),
    "show": (show.Show, show.run),
    "labels": (labels.Labels, labels.run),
    "convert": (convert.Convert, convert.run),
    "export": (export.Export, export.run),
    "fixture": (fixture.Fixture, fixture.run),
}


def main(arguments: list[str]) -> int:
    options = parse_subcommand(
        {name: kind for name, (kind, _) in SUBCOMMANDS.items()},
        arguments,
        "data",
        description="Look at a data set, check it, choose labels, convert a benchmark, export it.",
    )
    run = next(run for kind, run in SUBCOMMANDS.values() if kind is type(options))
    return run(options)
