"""`dmtl bench`: how fast this machine predicts, beside what, and how near to what it allows."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import console, model_folder, say

PARTS = ("contenders", "memory", "roofline", "scaling")
SMALL = {"width": 64, "backbone_width": 16}  # of --quick without MODEL


@dataclass(frozen=True)
class Bench:
    """Time the engine beside the published execution and an expert's PyTorch, and say where its time goes.

    Contenders are checked against one another first and take turns; memory is measured in a process for each.
    The roofline sets every stage and operator beside what the machine allows; the scaling runs vary tasks,
    steps, pixels and batch. Writes OUT/bench.html and OUT/bench.jsonl. The baselines need the source
    checkout.
    """

    model: Annotated[str | None, *positional("MODEL")] = None
    """A run's folder, or a folder with config.json and model.safetensors; default: the published network with
    random weights and five tasks."""
    size: tuple[int, int] = (512, 512)
    """Height and width of the images."""
    batch: list[int] | None = None
    """Images at once, one comparison each; default: 1 4 on a CPU, 1 8 32 on a GPU."""
    steps: int | None = None
    """Denoising steps; default: as trained."""
    tasks: list[str] | None = None
    """Tasks to predict; default: all."""
    precision: list[str] | None = None
    """fp32, tf32, bf16 or fp16; default: all that the device serves."""
    parts: list[str] | None = None
    """Some of contenders, memory, roofline and scaling; default: all."""
    rounds: int = 9
    """Rounds of every comparison (at least three; fewer where they take long)."""
    compile: Literal["max-autotune", "reduce-overhead", "default", "none"] = "max-autotune"
    """How the expert's code is compiled, which can take minutes; "none": eager."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """A minute at most on two cores: small network and images, no compiler, no memory."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    out: str = "bench"
    """Folder to write."""


def main(arguments: list[str]) -> int:
    args = _checked(parse(Bench, arguments, "bench"))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    from dmtl.bench import facts
    from dmtl.bench.contenders import baselines
    from dmtl.report.bench import write_bench
    from dmtl.runtime.devices import pick_device

    device = pick_device(args.device)
    case, precisions = _case(args, device)
    known = facts.facts(device)
    say(f"{known['device']}, {known['threads']} threads, torch {known['torch']}")
    if baselines() is None:
        say("The baselines (published, expert) are in the source checkout (benchmarks/): no ratios here.")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with open(out / "bench.jsonl", "w", encoding="utf-8") as file:
        for group in _measured(args, case, precisions):
            rows += group
            file.writelines(json.dumps(row | known) + "\n" for row in group)
            file.flush()
            _show(group)
    say(f"wrote {write_bench(out / 'bench.html', rows, known)} and {out / 'bench.jsonl'}")
    return 1 if any("error" in row for row in rows) else 0


def _checked(args: Bench) -> Bench:
    from dmtl.errors import ConfigError

    numbers = {"--size": args.size, "--batch": args.batch or (), "--rounds": (args.rounds,)}
    numbers["--steps"] = () if args.steps is None else (args.steps,)
    for name, values in numbers.items():
        if any(value < 1 for value in values):
            raise ConfigError(f"{name} must be at least 1, got {' '.join(map(str, values))}")
    for part in args.parts or ():
        if part not in PARTS:
            raise ConfigError(f"--parts must be among {', '.join(PARTS)}, got {part!r}")
    if not args.quick:
        return args
    small = args.size if args.size != Bench.size or args.model else (128, 128)
    parts = args.parts or [part for part in PARTS if part != "memory"]
    return replace(args, size=small, batch=args.batch or [1], rounds=min(args.rounds, 5), parts=parts)


def _case(args: Bench, device):
    """What is predicted, and the precisions asked for; ConfigError where model or device cannot."""
    from dmtl.bench.contenders import Case, served
    from dmtl.errors import ConfigError
    from dmtl.models import load_model

    for precision in args.precision or ():
        if precision not in served(device):
            known = ", ".join(served(device))
            raise ConfigError(f"--precision must be among {known} on this device, got {precision!r}")
    folder = None if args.model is None else str(model_folder(args.model))
    case = Case(size=args.size, steps=args.steps, device=str(device), model=folder)
    if folder is None and args.quick:
        case = case.but(options=SMALL)
    known = case.all_tasks if folder is None else tuple(load_model(folder).tasks)
    for task in args.tasks or ():
        if task not in known:
            raise ConfigError(f"--tasks must be among {', '.join(known)}, got {task!r}")
    return case.but(all_tasks=known, tasks=tuple(args.tasks) if args.tasks else None), args.precision


def _measured(args: Bench, case, precisions):
    """Groups of rows, each as soon as it is known."""
    import torch

    from dmtl.bench import contenders, memory, race, roofline, scaling

    device = torch.device(case.device)
    tried = dict.fromkeys((args.compile, "default"))
    options = {"modes": () if args.quick or args.compile == "none" else tuple(tried)}
    parts, batches = args.parts or PARTS, args.batch or ([1, 8, 32] if device.type == "cuda" else [1, 4])
    for batch in batches if "contenders" in parts else ():
        yield race.Race(case.but(batch=batch), precisions, **options).run(args.rounds)
    model = case.build()
    everyone = contenders.names(device, precisions, model.config)
    diffuses = model.config.diffusion != "none"
    del model
    for batch in batches if "memory" in parts else ():
        yield [memory.row(case.but(batch=batch), *who, **options) for who in everyone]
    mine = precisions or contenders.served(device)
    for precision in mine if "roofline" in parts else ():
        yield roofline.roofline(case.but(batch=batches[0]), precision)
    for axis in scaling.AXES if "scaling" in parts else ():
        if diffuses or axis != "steps":
            yield scaling.scaling(axis, case.but(batch=batches[0]), mine[0], quick=args.quick)


def _show(rows: list[dict]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from dmtl.report.bench import tables

    for table in tables(rows):
        shown = Table(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, padding=0)
        for i, name in enumerate(table.header):
            left = i == 0 or name in ("precision", "operator", "")
            shown.add_column(name, justify="left" if left else "right")
        for i, cells in enumerate(table.cells):
            shown.add_row(*map(Text, cells), style="bold" if i in table.strong else None)
        console.print(shown)
        say(table.note + "\n")
