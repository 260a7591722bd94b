"""`dmtl train --dry-run`: what a run will be, and what it will take."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from dmtl.cli._common import console, say
from dmtl.text import duration, mebibytes, number
from dmtl.train.config import RunConfig
from dmtl.train.plan import forecast, measure, plan


def dry_run(config: RunConfig) -> int:
    """Prints the plan, then what a few measured steps say. Writes nothing."""
    facts = plan(config)
    print_plan(config, facts)
    with console.status("measuring a few steps"):
        measured = measure(config)
    print_forecast(measured, forecast(facts, config, measured))
    return 0


def print_plan(config: RunConfig, facts: dict) -> None:
    """Print what `dmtl.train.plan.plan` gives."""
    data, steps, files = facts["data"], facts["steps"], facts["files"]
    console.print(_label_table(data, steps))
    per_image = ", ".join(f"{n} with {k}" for k, n in data["labels"]["labels_per_image"].items())
    head = _rows()
    counts = (_thousands(data[key]) for key in ("train", "labelled", "val"))
    head.add_row("images", "{} for training, {} of them labelled; {} for validation".format(*counts))
    head.add_row("labels per image", per_image)
    schedule = (
        f"{_thousands(steps['total'])} of {steps['images']} images, {_thousands(steps['per_epoch'])} an epoch"
    )
    head.add_row("steps", f"{schedule} ({number(steps['epochs'])} epochs)")
    parts = facts["parameters"]
    trained, frozen = (sum(part[kind] for part in parts.values()) for kind in ("trained", "frozen"))
    head.add_row("parameters", f"{_mega(trained)} trained" + (f", {_mega(frozen)} frozen" if frozen else ""))
    for name, part in parts.items():
        told = [f"{_mega(part[kind])}{' ' + kind if frozen else ''}" for kind in part if part[kind]]
        head.add_row(f"  {name}", ", ".join(told) or "none")
    work = facts["flops"]
    stages = ", ".join(f"{s} {_giga(work[s])}" for s in ("initial", "condition", "chain") if work[s])
    forward = f"{_giga(sum(work.values()))} forward ({stages})"
    head.add_row("GFLOP of a step", f"{forward}; backward twice as much, less if parts are frozen")
    kept = f"{files['kept']} checkpoint{'' if files['kept'] == 1 else 's'}"
    each = f"{mebibytes(files['checkpoint'])} each; models of {mebibytes(files['model'])}"
    head.add_row("on disk", f"{kept} of {each}; {mebibytes(files['disk'])} at most")
    console.print(head)


def print_forecast(measured: dict, told: dict) -> None:
    """Print what `dmtl.train.plan.forecast` gives."""
    rows = _rows()
    memory = f"{mebibytes(told['memory_bytes'])} resident"
    if told["cache_bytes"]:
        memory += f", {mebibytes(told['cache_bytes'])} of it samples (data.cache)"
    if told["device_bytes"]:
        memory += f"; {mebibytes(told['device_bytes'])} on {measured['device']}"
    rows.add_row("memory", memory)
    load = f"{duration(told['load_first_s'])} to load a batch"
    if told["load_s"] != told["load_first_s"]:
        load += f" at first, {duration(told['load_s'])} later"
    if told["start_s"]:
        rows.add_row("at the start", f"{duration(told['start_s'])} to read all samples (data.cache)")
    step, compute = duration(told["step_s"]), duration(told["compute_s"])
    rows.add_row("a step", f"{step} on average: {compute} to compute, {load}")
    rows.add_row("evaluations", f"{duration(told['evaluation_s'])} in all")
    rows.add_row("the whole run", duration(3600 * told["hours"]))
    console.print(rows)
    n, cores = len(measured["step_s"]), measured["cores"]
    say(f"Measured on {n} steps of one process on {measured['device']} ({cores} CPU cores).")
    say("GFLOP: two for a multiply-add, convolutions and products alone, MTDNet for the labelled pairs.")


def _label_table(data: dict, steps: dict) -> Table:
    size = "x".join(map(str, data["size"]))
    table = Table(title=escape(f"{data['name']}, crops of {size}"), title_justify="left")
    table.add_column("task")
    table.add_column("labels", justify="right")
    table.add_column("in a step", justify="right")
    for task, labels in data["labels"]["per_task"].items():
        table.add_row(escape(task), _thousands(labels), number(steps["pairs"][task]))
    pairs = f"{number(sum(steps['pairs'].values()))}, at most {steps['most_pairs']}"
    table.add_section()
    table.add_row("all", _thousands(data["labels"]["labels"]), pairs)
    return table


def _rows() -> Table:
    """A table of names and what is to say of them, as wide in front as the others."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(min_width=len("denoising decoders") + 2)
    table.add_column()
    return table


def _thousands(n: int) -> str:
    return f"{n:,}"


def _mega(n: int) -> str:
    return f"{n / 1e6:.3g} M"


def _giga(operations: float) -> str:
    return number(float(f"{operations / 1e9:.4g}"))
