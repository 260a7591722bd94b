"""`dmtl report`: one page from finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from dmtl.cli._common import console, parse


@dataclass(frozen=True)
class Report:
    """Write a self-contained HTML page: labels, metrics beside the baseline, curves, pictures of every denoising step."""

    runs: Annotated[list[str], tyro.conf.Positional]
    """Finished DiffusionMTL runs: one, or one for each seed."""
    baseline: list[str] | None = None
    """The baseline's runs, as many and in the same order."""
    out: str = "report.html"
    """The page to write."""
    pictures: int = 4
    """Validation images shown."""


def main(arguments: list[str]) -> int:
    args = parse(Report, arguments, "report")
    from dmtl.errors import ConfigError
    from dmtl.report.run import report_from_runs

    if args.baseline is not None and len(args.baseline) != len(args.runs):
        raise ConfigError(f"baseline must name as many runs as there are before it ({len(args.runs)}), got {len(args.baseline)}")
    path = report_from_runs(args.runs, args.baseline, args.out, pictures=args.pictures)
    console.print(f"wrote {path}")
    return 0
