"""`dmtl report`: one page from finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import require_page, say


@dataclass(frozen=True)
class Report:
    """Write a self-contained HTML page: labels, metrics beside the baseline, curves, all steps' pictures."""

    runs: Annotated[list[str], *positional("RUN ...")]
    """Finished DiffusionMTL runs: one, or one for each seed."""
    baseline: list[str] | None = None
    """The baseline's runs, as many and in the same order."""
    out: str = "report.html"
    """The page to write."""
    pictures: int = 4
    """Validation images shown."""
    samples: int = 8
    """Draws of the noise by which the page says how sure the model is, and whether it is unsure where it is
    wrong; 0: none of that."""


def main(arguments: list[str]) -> int:
    args = parse(Report, arguments, "report")
    from dmtl.errors import ConfigError
    from dmtl.report.run import report_from_runs

    require_page(args.out)
    if not args.runs:
        raise ConfigError("RUN must be at least one folder of a finished run, got none")
    if args.baseline is not None and len(args.baseline) != len(args.runs):
        raise ConfigError(
            f"--baseline must name as many runs as RUN ({len(args.runs)}), got {len(args.baseline)}"
        )
    path = report_from_runs(args.runs, args.baseline, args.out, pictures=args.pictures, samples=args.samples)
    say(f"wrote {path}")
    return 0
