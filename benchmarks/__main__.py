"""`python -m benchmarks`: how fast this machine predicts, compared with other executions and the machine's
limits.

Contenders are first checked against one another, then take turns; memory is measured in a process for each.
The roofline compares every stage and operator with the machine's limits. Writes OUT/bench.html and
OUT/bench.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmtl.errors import ConfigError, DmtlError
from dmtl.models.pretrained import BUILTIN
from dmtl.nn.precision import DTYPES
from dmtl.runtime.devices import pick_device

from . import contenders, memory, race, roofline, runtimes
from .cases import PUBLISHED, Case, of_model, standard
from .facts import facts
from .page import tables, write_page

PARTS = ("contenders", "memory", "roofline")
MODES = ("max-autotune", "reduce-overhead", "default", "none")
QUICK = BUILTIN  # case of --quick
WIDEST = 120  # columns that a table of all contenders needs
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run the requested measurements; the status is 1 if a contender failed."""
    parser = _parser()
    args = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    try:
        cases = _cases(args)
    except (DmtlError, OSError) as error:
        parser.error(str(error))
    known = facts(torch.device(cases[0].device))
    _say(f"{known['device']}, {known['threads']} threads, torch {known['torch']}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with open(out / "bench.jsonl", "w", encoding="utf-8") as file:
        for group in _measured(args, cases):
            rows += group
            file.writelines(json.dumps(row | known) + "\n" for row in group)
            file.flush()
            _show(group)
    _say(f"wrote {write_page(out / 'bench.html', rows, known)} and {out / 'bench.jsonl'}")
    return 1 if any("error" in row for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n\n")[2])
    add = parser.add_argument
    add(
        "model", metavar="MODEL", nargs="?",
        help="a run, or a folder with config.json and model.safetensors; default: the standard cases",
    )  # fmt: skip
    add(
        "--cases", nargs="+", choices=(PUBLISHED, BUILTIN),
        help=f"some of the standard cases: the published network with random weights and five tasks at "
        f"512x512, batches 1 and 4 (on a GPU 1, 8 and 32); {BUILTIN} at 512x512 and 128x160, batches 1 and 8",
    )  # fmt: skip
    add("--size", type=_positive, nargs=2, metavar=("H", "W"), help="of the images, in all cases")
    add("--batch", type=_positive, nargs="+", help="batch sizes, in all cases; of MODEL by default 1")
    add("--steps", type=_positive, help="denoising steps; default: as trained")
    add("--tasks", nargs="+", metavar="TASK", help="tasks to predict; default: all")
    add("--precision", nargs="+", choices=DTYPES, help="default: all that the device supports")
    add("--parts", nargs="+", choices=PARTS, help="default: all")
    add("--contenders", nargs="+", choices=contenders.NAMES, help="who takes part; default: all")
    add("--rounds", type=_positive, default=9, help="of a comparison; fewer if they take long")
    add("--compile", choices=MODES, default="max-autotune", help='of the expert; "none": eager')
    add(
        "--quick", action="store_true",
        help=f"about a minute: {BUILTIN} at 128x160, no compiler, no exported files, no memory",
    )  # fmt: skip
    add("--device", default="auto", help='"auto", "cpu", "cuda" or "cuda:N"')
    add("--out", default="bench", help="folder to write")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _cases(args: argparse.Namespace) -> list[Case]:
    """Return the cases to predict; ConfigError if a model or the device does not support them."""
    device = pick_device(args.device)
    for precision in args.precision or ():
        if precision not in contenders.served(device):
            served = ", ".join(contenders.served(device))
            raise ConfigError(f"--precision must be one of {served} on this device, got {precision!r}")
    if args.model is not None and args.cases is not None:
        raise ConfigError("pass either MODEL or --cases, not both")
    if args.model is not None:
        found = [of_model(args.model).but(device=str(device))]
    else:
        names = args.cases or ((QUICK,) if args.quick else (PUBLISHED, BUILTIN))
        found = [case for case in standard(str(device)) if case.name in names]
    size = tuple(args.size) if args.size else (128, 160) if args.quick else None
    batches = args.batch or ([1] if args.quick else None)
    found = [case.but(size=size or case.size, batch=b) for case in found for b in batches or [case.batch]]
    for case in found:
        for task in args.tasks or ():
            if task not in case.all_tasks:
                known = ", ".join(case.all_tasks)
                raise ConfigError(f"--tasks must be among {known} for {case.name}, got {task!r}")
    tasks = tuple(args.tasks) if args.tasks else None
    unique = {(case.name, case.size, case.batch): case for case in found}
    return [case.but(steps=args.steps, tasks=tasks) for case in unique.values()]


def _measured(args: argparse.Namespace, cases: list[Case]) -> Iterator[list[dict]]:
    """Yield groups of rows, each as soon as it is measured."""
    device = torch.device(cases[0].device)
    tried = tuple(dict.fromkeys((args.compile, "default")))
    modes = () if args.quick or args.compile == "none" else tried
    parts = args.parts or [part for part in PARTS if not (args.quick and part == "memory")]
    rounds = min(args.rounds, 5) if args.quick else args.rounds
    who = args.contenders or [n for n in contenders.NAMES if not (args.quick and n in runtimes.NAMES)]
    for case in cases if "contenders" in parts else ():
        yield race.Race(case, args.precision, who, modes=modes).run(rounds)
    for case in cases if "memory" in parts else ():
        everyone = contenders.names(device, args.precision, case.build().config)
        yield [memory.row(case, *pair, modes=modes) for pair in everyone if pair[0] in who]
    falling = sorted(cases, key=lambda case: -case.batch)
    smallest = {(case.name, case.size): case for case in falling}
    for case in smallest.values() if "roofline" in parts else ():
        for precision in args.precision or contenders.served(device):
            yield roofline.roofline(case, precision)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _show(rows: list[dict]) -> None:
    # A narrow terminal wraps the lines, which is better than names that are cut off.
    wide = Console(width=max(console.width, WIDEST))
    for table in tables(rows):
        shown = Table(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, padding=0)
        for i, name in enumerate(table.header):
            left = i == 0 or name in ("precision", "operator", "")
            shown.add_column(name, justify="left" if left else "right")
        for i, cells in enumerate(table.cells):
            shown.add_row(*map(Text, cells), style="bold" if i in table.strong else None)
        wide.print(shown)
        _say(table.note + "\n")


if __name__ == "__main__":
    sys.exit(main())
