"""`dmtl claim`: one configuration, several seeds, DiffusionMTL beside the baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rich.table import Table

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, training_progress
from dmtl.cli.train import defaults, run_config
from dmtl.errors import ConfigError
from dmtl.train.claim import METHODS, Claim, mean_and_spread, run_claim
from dmtl.train.config import RunConfig


@dataclass(frozen=True)
class ClaimArgs(RunConfig):
    """Train DiffusionMTL and the multi-task baseline from the same labels, once per seed, and print
    Delta_MTL with its spread.

    The baseline is trained twice: for equal steps, and for as many steps as fit into DiffusionMTL's
    training time. Finished runs in OUT are kept, so an interrupted command goes on where it was.
    """

    config: Annotated[str | None, *positional("[CONFIG]")] = None
    """A TOML file; it comes first."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of initialisation, order, augmentation and noise."""


def main(arguments: list[str]) -> int:
    args = parse(ClaimArgs, arguments, "claim", default=defaults(ClaimArgs, arguments))
    if not args.seeds:
        raise ConfigError("--seeds must name at least one seed, got none")
    claim = run_claim(run_config(args, arguments), args.seeds, training_progress)
    console.print(claim_table(claim))
    for name, values in (("equal steps", claim.delta_equal_steps), ("equal time", claim.delta_equal_time)):
        each = ", ".join(f"{v:+.2f}" for v in values)
        figure = f"{_figure(values, '+.2f')} %" + (f"  ({each})" if len(values) > 1 else "")
        console.print(f"Delta_MTL of DiffusionMTL against MTL at {name}: [bold]{figure}[/bold]")
    return 0


def claim_table(claim: Claim) -> Table:
    """Mean and standard deviation over seeds of every task's metrics, one column per method."""
    seeds = [run.seed for run in claim.of("diffusion")]
    title = f"{len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else f"seed {seeds[0]}"
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for method in METHODS:
        steps = round(mean_and_spread([run.steps for run in claim.of(method)])[0])
        seconds = mean_and_spread([run.seconds for run in claim.of(method)])[0]
        table.add_column(f"{method}\n{steps} steps, {seconds:.0f} s", justify="right")
    first = claim.runs[0].metrics
    for task in (t for t in first if "/" not in t):
        for metric in (m for m in first[task] if "/" not in m):
            cells = (_figure([run.metrics[task][metric] for run in claim.of(m)], ".4g") for m in METHODS)
            table.add_row(task, metric, *cells)
    return table


def _figure(values: list[float], form: str) -> str:
    """Mean ± standard deviation, or the one value there is."""
    mean, spread = mean_and_spread(values)
    return f"{mean:{form}} ± {spread:.2g}" if len(values) > 1 else f"{mean:{form}}"
