"""`dmtl data`: look at a data set, check it, choose labels, import, convert, export.

A subcommand is a dataclass of options and a function `run(options) -> exit status`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmtl.cli._arguments import parse_subcommand
from dmtl.cli.data import check, folders, imports, labels, show

SUBCOMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "check": (check.Check, check.run),
    "show": (show.Show, show.run),
    "labels": (labels.Labels, labels.run),
    "import": (imports.Import, imports.run),
    "convert": (folders.Convert, folders.convert),
    "export": (folders.Export, folders.export),
}


def main(arguments: list[str]) -> int:
    options = parse_subcommand(
        {name: kind for name, (kind, _) in SUBCOMMANDS.items()},
        arguments,
        "data",
        description="Check, show, import, convert or export a data set; choose its labels.",
    )
    run = next(run for kind, run in SUBCOMMANDS.values() if kind is type(options))
    return run(options)
