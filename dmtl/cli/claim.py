"""`dmtl claim`: the methods of a table, each over several seeds, against a baseline."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD

from dmtl.cli._arguments import check_at_least
from dmtl.cli._common import console, say, table_of, write_files
from dmtl.cli._progress import Relay
from dmtl.cli.train import FromFile, parse_run
from dmtl.errors import ConfigError
from dmtl.train.claim import FILE, claim_of
from dmtl.train.config import RunConfig
from dmtl.train.toml import read_methods

if TYPE_CHECKING:
    from dmtl.report.runs.claim import Results


@dataclass(frozen=True)
class ClaimArgs(FromFile):
    """Train every method of a table from the same labels, once per seed, and print Delta_MTL with its
    spread.

    The section [methods] of CONFIG describes the methods; options override their common base. Without this
    section, DiffusionMTL is compared with the multi-task baseline at equal steps and at equal training time.
    Runs are written to OUT/seedN/METHOD. Finished runs are kept, so the same command resumes an interrupted
    one.
    """

    out: str = RunConfig.out
    """Folder of all runs and of claim.json."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of initialisation, order, augmentation and noise."""
    methods: list[str] = field(default_factory=list)
    """Methods to train, along with those whose training time they need; default: all. The table shows all
    finished methods."""
    processes: int = 1
    """Number of runs at the same time. With more than one, each has one thread unless OMP_NUM_THREADS is set.
    Training times are comparable only between runs under the same conditions."""
    json: str | None = None
    """Also write all results as JSON; they are also in OUT/claim.json."""
    markdown: str | None = None
    """Also write the table as Markdown."""


def main(arguments: list[str]) -> int:
    args, config = parse_run(ClaimArgs, arguments, "claim")
    if not args.seeds:
        raise ConfigError("--seeds must name at least one seed, got none")
    check_at_least(args, processes=1)
    try:
        claim = claim_of(config, read_methods(args.config) if args.config else None)
    except ConfigError as error:
        raise ConfigError(f"{args.config}: {error}" if args.config else str(error)) from None
    from dmtl.report.runs.claim import results_of, write_json, write_markdown
    from dmtl.train.jobs import run_jobs
    from dmtl.train.setup import open_data
    from dmtl.train.trainer import RunStopped

    seeds = list(dict.fromkeys(args.seeds))
    jobs = claim.jobs(config.out, seeds, claim.with_needed(args.methods or claim.methods))
    # report errors before anything is trained
    open_data(config.data, config.optim.task_weights).describe(config.data, say)

    def collect() -> Results:
        results = results_of(claim, config.out, seeds)
        write_json(Path(config.out) / FILE, results)
        return results

    collect()
    relay = Relay({str(job.out): job.log for job in jobs})
    try:
        failed = run_jobs(jobs, args.processes, say, collect, on_wait=relay)
    except RunStopped as stopped:
        print(f"dmtl claim: {stopped}", file=sys.stderr)
        return stopped.status
    results = collect()
    written = write_files(results, (args.json, write_json), (args.markdown, write_markdown))
    print_table(results)
    for line in (*written, *failed):
        say(line)
    return 1 if failed else 0


def print_table(results: Results) -> None:
    """Print the metrics of every method, then details of Delta_MTL and time."""
    from dmtl.report.runs.claim import table

    head, rows = table(results)
    middle = head.index("Delta_MTL, %") + 1
    later = [0, *range(middle, len(head))]
    for columns, shown in ((range(middle), rows), (later, [row for row in rows if row[-1]])):
        names = [head[column] for column in columns]
        cells = ([row[column] for column in columns] for row in shown)
        console.print(table_of(names, cells, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)))
