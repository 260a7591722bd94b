"""`dmtl train --dry-run`: print a summary of a run and an estimate of its time and memory."""

from __future__ import annotations

from rich.table import Table

from dmtl.cli._common import console, facts_of, say, table_of
from dmtl.text import duration, mebibytes, number, plural
from dmtl.train.config import RunConfig
from dmtl.train.plan import forecast, measure, plan

WIDTH = len("denoising decoders") + 2  # of the names, in both tables


def dry_run(config: RunConfig) -> int:
    """Print the plan, then a forecast from a few measured steps. Writes nothing."""
    facts = plan(config)
    print_plan(facts)
    with console.status("measuring a few steps"):
        measured = measure(config)
    print_forecast(measured, forecast(facts, config, measured))
    return 0


def print_plan(facts: dict) -> None:
    """Print the result of `dmtl.train.plan.plan`."""
    data, steps, files = facts["data"], facts["steps"], facts["files"]
    for note in facts["notes"]:
        say(note)
    console.print(_label_table(data, steps))
    if data["sources"]:
        console.print(_source_table(data["sources"]))
    per_image = ", ".join(f"{n} with {k}" for k, n in data["labels"]["labels_per_image"].items())
    counts = (f"{data[key]:,}" for key in ("train", "labelled", "val"))
    rows = [
        ("images", "{} for training, {} of them labelled; {} for validation".format(*counts)),
        ("labels per image", per_image),
    ]
    schedule = f"{steps['total']:,} of {steps['images']} images, {steps['per_epoch']:,} an epoch"
    rows.append(("steps", f"{schedule} ({number(steps['epochs'])} epochs)"))
    parts = facts["parameters"]
    trained, frozen = (sum(part[kind] for part in parts.values()) for kind in ("trained", "frozen"))
    rows.append(("parameters", f"{_mega(trained)} trained" + (f", {_mega(frozen)} frozen" if frozen else "")))
    for name, part in parts.items():
        told = [f"{_mega(part[kind])}{' ' + kind if frozen else ''}" for kind in part if part[kind]]
        rows.append((f"  {name}", ", ".join(told) or "none"))
    work = facts["flops"]
    stages = ", ".join(f"{stage} {_giga(number)}" for stage, number in work.items() if number)
    forward = f"{_giga(sum(work.values()))} forward ({stages})"
    flops = f"{forward}; backward twice as much, less if parts are frozen"
    kept = plural(files["kept"], "checkpoint")
    each = f"{mebibytes(files['checkpoint'])} each; models of {mebibytes(files['model'])}"
    disk = f"{kept} of {each}; {mebibytes(files['disk'])} at most"
    console.print(facts_of([*rows, ("GFLOP of a step", flops), ("on disk", disk)], width=WIDTH))


def print_forecast(measured: dict, told: dict) -> None:
    """Print the result of `dmtl.train.plan.forecast`."""
    memory = f"{mebibytes(told['memory_bytes'])} resident"
    if told["cache_bytes"]:
        memory += f", {mebibytes(told['cache_bytes'])} of it samples (data.cache)"
    if told["device_bytes"]:
        memory += f"; {mebibytes(told['device_bytes'])} on {measured['device']}"
    rows = [("memory", memory)]
    load = f"{duration(told['load_first_s'])} to load a batch"
    if told["load_s"] != told["load_first_s"]:
        load += f" at first, {duration(told['load_s'])} later"
    if told["start_s"]:
        rows.append(("at the start", f"{duration(told['start_s'])} to read all samples (data.cache)"))
    step, compute = duration(told["step_s"]), duration(told["compute_s"])
    rows.append(("a step", f"{step} on average: {compute} to compute, {load}"))
    rows.append(("evaluations", f"{duration(told['evaluation_s'])} in all"))
    rows.append(("the whole run", duration(3600 * told["hours"])))
    console.print(facts_of(rows, width=WIDTH))
    n, cores = len(measured["step_s"]), measured["cores"]
    say(f"Measured on {n} steps of one process on {measured['device']} ({cores} CPU cores).")
    say("GFLOP: two per multiply-add, convolutions and products only, MTDNet for the labelled pairs.")


def _label_table(data: dict, steps: dict) -> Table:
    size, each = "x".join(map(str, data["size"])), data["labels"]["per_task"]
    rows = ((task, f"{labels:,}", number(steps["pairs"][task])) for task, labels in each.items())
    table = table_of(("task", "labels", "in a step"), rows, f"{data['name']}, crops of {size}")
    pairs = f"{number(sum(steps['pairs'].values()))}, at most {steps['most_pairs']}"
    table.add_section()
    table.add_row("all", f"{data['labels']['labels']:,}", pairs)
    return table


def _source_table(sources: list[dict]) -> Table:
    heads = ("source", "training", "in a step", "validation", "labels")
    table = table_of(heads)
    table.columns[-1].justify = "left"
    for s in sources:
        labels = ", ".join(f"{task} {n:,}" for task, n in s["labels"].items())
        table.add_row(s["name"], f"{s['train']:,}", number(s["in_step"]), f"{s['val']:,}", labels or "none")
    return table


def _mega(n: int) -> str:
    return f"{n / 1e6:.3g} M"


def _giga(operations: float) -> str:
    return number(float(f"{operations / 1e9:.4g}"))
