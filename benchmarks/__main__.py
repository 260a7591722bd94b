"""`python -m benchmarks`: how fast this machine predicts, compared with two baselines and the machine's
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
from dmtl.models import from_pretrained
from dmtl.nn.precision import DTYPES
from dmtl.runtime.devices import pick_device

from . import contenders, memory, race, roofline
from .contenders import Case
from .facts import facts
from .page import tables, write_page

PARTS = ("contenders", "memory", "roofline")
MODES = ("max-autotune", "reduce-overhead", "default", "none")
SMALL = {"width": 64, "backbone_width": 16}  # of --quick without MODEL
console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run the requested measurements; the status is 1 if a contender failed."""
    parser = _parser()
    args = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    try:
        case = _case(args)
    except (DmtlError, OSError) as error:
        parser.error(str(error))
    known = facts(torch.device(case.device))
    _say(f"{known['device']}, {known['threads']} threads, torch {known['torch']}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with open(out / "bench.jsonl", "w", encoding="utf-8") as file:
        for group in _measured(args, case):
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
        help="a run, or a folder with config.json and model.safetensors; default: the published network with "
        "random weights and five tasks",
    )  # fmt: skip
    add("--size", type=_positive, nargs=2, metavar=("H", "W"), help="of the images; default: 512 512")
    add("--batch", type=_positive, nargs="+", help="batch sizes; default: 1 4 on a CPU, 1 8 32 on a GPU")
    add("--steps", type=_positive, help="denoising steps; default: as trained")
    add("--tasks", nargs="+", metavar="TASK", help="tasks to predict; default: all")
    add("--precision", nargs="+", choices=DTYPES, help="default: all that the device supports")
    add("--parts", nargs="+", choices=PARTS, help="default: all")
    add("--contenders", nargs="+", choices=contenders.NAMES, help="who takes part; default: all")
    add("--rounds", type=_positive, default=9, help="of a comparison; fewer if they take long")
    add("--compile", choices=MODES, default="max-autotune", help='of the expert; "none": eager')
    add("--quick", action="store_true", help="under a minute: small network, no compiler, no memory")
    add("--device", default="auto", help='"auto", "cpu", "cuda" or "cuda:N"')
    add("--out", default="bench", help="folder to write")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _case(args: argparse.Namespace) -> Case:
    """Return the case to predict; ConfigError if the model or the device does not support it."""
    device = pick_device(args.device)
    for precision in args.precision or ():
        if precision not in contenders.served(device):
            served = ", ".join(contenders.served(device))
            raise ConfigError(f"--precision must be one of {served} on this device, got {precision!r}")
    size = args.size or ((128, 128) if args.quick and args.model is None else (512, 512))
    case = Case(size=tuple(size), steps=args.steps, device=str(device))
    if args.model is not None:
        case = case.but(model=args.model, all_tasks=tuple(from_pretrained(args.model).tasks))
    elif args.quick:
        case = case.but(options=SMALL)
    for task in args.tasks or ():
        if task not in case.all_tasks:
            raise ConfigError(f"--tasks must be among {', '.join(case.all_tasks)}, got {task!r}")
    return case.but(tasks=tuple(args.tasks) if args.tasks else None)


def _measured(args: argparse.Namespace, case: Case) -> Iterator[list[dict]]:
    """Yield groups of rows, each as soon as it is measured."""
    device = torch.device(case.device)
    tried = tuple(dict.fromkeys((args.compile, "default")))
    modes = () if args.quick or args.compile == "none" else tried
    parts = args.parts or [part for part in PARTS if not (args.quick and part == "memory")]
    batches = args.batch or ([1] if args.quick else [1, 8, 32] if device.type == "cuda" else [1, 4])
    rounds = min(args.rounds, 5) if args.quick else args.rounds
    for batch in batches if "contenders" in parts else ():
        yield race.Race(case.but(batch=batch), args.precision, args.contenders, modes=modes).run(rounds)
    everyone = contenders.names(device, args.precision, case.build().config)
    for batch in batches if "memory" in parts else ():
        yield [memory.row(case.but(batch=batch), *who, modes=modes) for who in everyone]
    for precision in args.precision or contenders.served(device) if "roofline" in parts else ():
        yield roofline.roofline(case.but(batch=batches[0]), precision)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _show(rows: list[dict]) -> None:
    for table in tables(rows):
        shown = Table(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, padding=0)
        for i, name in enumerate(table.header):
            left = i == 0 or name in ("precision", "operator", "")
            shown.add_column(name, justify="left" if left else "right")
        for i, cells in enumerate(table.cells):
            shown.add_row(*map(Text, cells), style="bold" if i in table.strong else None)
        console.print(shown)
        _say(table.note + "\n")


if __name__ == "__main__":
    sys.exit(main())
