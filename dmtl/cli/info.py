"""`dmtl info`: what was built, and which backend each operator takes here; with `--model`: what a model is,
its work and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from dmtl.cli._arguments import parse
from dmtl.cli._common import console, say
from dmtl.text import mebibytes, number, plural

SIZES = (256, 512, 1024, 2048)  # pixels, of square images


@dataclass(frozen=True)
class Info:
    """Print versions, the native modules, and for every operator its backend here and why not the others; or
    what a model is, its work and its memory."""

    model: str | None = None
    """A run's folder, a model folder, a published file, or an id on the Hub (org/name): print this model
    instead."""
    size: tuple[int, int] | None = None
    """Height and width of the model's images; default: squares of 256, 512, 1024 and 2048 pixels."""
    batch: int | None = None
    """Images at once, default 1."""
    device: str = "auto"
    """Where the model shall predict: "auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Info, arguments, "info")
    if args.model is None:
        alone = args.size is None and args.batch is None and args.device == "auto"
        _require(alone, "--size, --batch and --device say how a model is used: add --model MODEL")
        from dmtl.info import print_info

        print_info()
        return 0
    _require(args.size is None or min(args.size) >= 1, f"--size must be at least 1 1, got {args.size}")
    _require(args.batch is None or args.batch >= 1, f"--batch must be at least 1, got {args.batch}")
    from dmtl.engine.describe import describe_model
    from dmtl.models import from_pretrained
    from dmtl.runtime.devices import pick_device

    model = from_pretrained(args.model)
    sizes = [args.size] if args.size else [(side, side) for side in SIZES]
    _print_model(args.model, describe_model(model, pick_device(args.device), sizes, args.batch or 1))
    return 0


def _require(condition: bool, message: str) -> None:
    from dmtl.errors import ConfigError

    if not condition:
        raise ConfigError(message)


def _print_model(name: str, facts: dict) -> None:
    """Print a description as tables."""
    from dmtl.engine.memory import SHARE

    head = Table(
        title=f"{escape(name)}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    tasks = ", ".join(f"{t['name']} ({t['kind']}, {_channels(t['channels'])})" for t in facts["tasks"])
    head.add_row("tasks", escape(tasks))
    head.add_row("mechanism", facts["mechanism"])
    head.add_row("network", facts["network"])
    parts = ", ".join(f"{part} {number / 1e6:.3g}" for part, number in facts["parameters"].items())
    head.add_row("parameters", f"{sum(facts['parameters'].values()) / 1e6:.3g} M: {parts}")
    transformed = facts["transformed_bytes"]
    beside = f", and {mebibytes(transformed)} of transformed weights" if transformed else ""
    own = f"{mebibytes(facts['parameter_bytes'])} of parameters{beside}"
    head.add_row("engine", f"{own} ({facts['device']}, {facts['precision']})")
    available = facts["available_bytes"]
    told = (
        "not known here" if available is None else f"{mebibytes(available)}, planned with {SHARE:.0%} of it"
    )
    head.add_row("free memory", told)
    console.print(head)
    console.print(_size_table(facts))
    say("GFLOP: two for a multiply-add. Peak memory: beside the engine's own, predicted to about a third.")
    say("Tiles: what the engine does with an image here, unless `dmtl predict --tile` says otherwise.")


def _size_table(facts: dict) -> Table:
    from dmtl.engine.describe import STAGES

    batch = facts["batch"]
    title = f"\nA prediction of all tasks, {plural(batch, 'image')} at once"
    table = Table(title=title, title_justify="left")
    table.add_column("size")
    stages = [stage for stage in STAGES if any(row["flops"][stage] for row in facts["sizes"])]
    for stage in (*stages, "all"):
        table.add_column(f"{stage}\nGFLOP", justify="right")
    table.add_column("peak memory", justify="right")
    table.add_column("tiles", justify="right")
    for row in facts["sizes"]:
        work = [row["flops"][stage] for stage in stages]
        tile = "whole" if row["tile"] is None else f"{row['tile']} px"
        figures = (number(value / 1e9) for value in (*work, sum(work)))
        table.add_row("{} x {}".format(*row["size"]), *figures, mebibytes(row["peak_bytes"]), tile)
    return table


def _channels(count: int) -> str:
    return plural(count, "channel")
