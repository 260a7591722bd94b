"""`dmtl info`: show what was built, and which backend each operator uses here; with MODEL: what a model is,
its work and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.table import Table

from dmtl.cli._arguments import MODEL, check_at_least, parse
from dmtl.cli._common import console, facts_of, say, table_of
from dmtl.errors import ConfigError
from dmtl.text import mebibytes, number, plural

SIZES = (256, 512, 1024, 2048)  # pixels, of square images


@dataclass(frozen=True)
class Info:
    """Print versions, native modules, and for every operator which backend it uses here and why others were
    rejected. With MODEL, describe that model and estimate its operations and memory."""

    model: Annotated[str | None, *MODEL] = None
    size: tuple[int, int] | None = None
    """Height and width of the model's images; default: squares of 256, 512, 1024 and 2048 pixels."""
    batch: int | None = None
    """Batch size; default: 1."""
    device: str = "auto"
    """Device to predict on: "auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Info, arguments, "info")
    if args.model is None:
        alone = args.size is None and args.batch is None and args.device == "auto"
        if not alone:
            raise ConfigError("--size, --batch and --device describe the use of a model: add MODEL")
        from dmtl.info import print_info
        from dmtl.models.pretrained import BUILTIN

        print_info()
        say(f"\n{BUILTIN}, the model that comes with dmtl: dmtl info {BUILTIN}")
        return 0
    check_at_least(args, size=1, batch=1)
    from dmtl.engine.describe import describe_model
    from dmtl.models.pretrained import BUILTIN, from_pretrained
    from dmtl.runtime.devices import pick_device

    model = from_pretrained(args.model)
    sizes = [args.size] if args.size else [(side, side) for side in SIZES]
    facts = describe_model(model, pick_device(args.device), sizes, args.batch or 1)
    _print_model(args.model, facts, _about_builtin() if args.model == BUILTIN else [])
    return 0


def _about_builtin() -> list[tuple[str, str]]:
    """Return what else is known of the model that comes with dmtl."""
    from dmtl.models.pretrained import BUILTIN_FOLDER, CARD
    from dmtl.models.weights import WEIGHTS

    size = (BUILTIN_FOLDER / WEIGHTS).stat().st_size / 1e6
    return [
        ("file", f"{size:.1f} MB, part of the package"),
        ("use", "research: its training images are published for research"),
        ("model card", str(BUILTIN_FOLDER / CARD)),
    ]


def _print_model(name: str, facts: dict, about: list[tuple[str, str]]) -> None:
    """Print a description as tables, with more rows `about` it."""
    from dmtl.engine.memory import SHARE

    tasks = (f"{t['name']} ({t['kind']}, {plural(t['channels'], 'channel')})" for t in facts["tasks"])
    parts = ", ".join(f"{part} {number / 1e6:.3g}" for part, number in facts["parameters"].items())
    transformed, available = facts["transformed_bytes"], facts["available_bytes"]
    engine = f"{mebibytes(facts['parameter_bytes'])} of parameters"
    engine += f", and {mebibytes(transformed)} of transformed weights" if transformed else ""
    free = "not known here"
    if available is not None:
        free = f"{mebibytes(available)}, planned with {SHARE:.0%} of it"
    rows = [
        ("tasks", ", ".join(tasks)),
        *((f"  {t['name']}", ", ".join(t["classes"])) for t in facts["tasks"] if t["classes"]),
        ("mechanism", facts["mechanism"]),
        ("network", facts["network"]),
        ("parameters", f"{sum(facts['parameters'].values()) / 1e6:.3g} M: {parts}"),
        ("engine", f"{engine} ({facts['device']}, {facts['precision']})"),
        ("free memory", free),
        *about,
    ]
    console.print(facts_of(rows, name))
    console.print(_size_table(facts))
    say("GFLOP: two per multiply-add. Peak memory: without the engine's own, to about a third.")
    say("Tiles: how the engine splits an image here, unless `dmtl predict --tile` is given.")


def _size_table(facts: dict) -> Table:
    from dmtl.engine.describe import STAGES

    stages = [stage for stage in STAGES if any(row["flops"][stage] for row in facts["sizes"])]
    rows = []
    for row in facts["sizes"]:
        work = [row["flops"][stage] for stage in stages]
        tile = "whole" if row["tile"] is None else f"{row['tile']} px"
        giga = (number(value / 1e9) for value in (*work, sum(work)))
        size, seen = ("{}x{}".format(*row[key]) for key in ("size", "seen"))
        rows.append((size, seen, *giga, mebibytes(row["peak_bytes"]).removesuffix(" MiB"), tile))
    columns = ("size", "seen", *(f"{stage}\nGFLOP" for stage in (*stages, "all")), "peak\nMiB", "tiles")
    title = f"\nA prediction of all tasks, {plural(facts['batch'], 'image')} at once"
    return table_of(columns, rows, title)
