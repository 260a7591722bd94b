"""What a model is, how much work a prediction is, and how much memory it takes where it shall run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from dmtl.cli._common import console, mib, say
from dmtl.engine.memory import SHARE, available_bytes, peak_bytes, tile_side
from dmtl.engine.numerics import PRECISIONS, choose_form
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.nn.resnet import DEPTHS
from dmtl.report.charts import number
from dmtl.train.work import count, flops

STAGES = ("initial", "condition", "chain")  # decoding moves memory and computes next to nothing
FREQUENCIES, PANEL = 36, 16  # of transformed 3x3 weights: numbers for 9 taps; channels out are filled up


def model_facts(
    model: DiffusionMTL | MultiTaskBaseline,
    device: torch.device,
    sizes: Iterable[tuple[int, int]],
    batch: int,
) -> dict:
    """Everything that `print_model` shows, JSON-able. Bytes and operations are those of the engine's defaults
    on the device: its precision, all tasks, steps as trained, one draw of the noise."""
    config, tasks = model.config, list(model.tasks.values())
    precision = PRECISIONS[device.type][0]
    form = choose_form(model, device, precision)
    available = available_bytes(device)
    rows = []
    for size in sizes:
        parts = count(config, size, batch)
        work = {stage: flops(part for part in parts if part.stage == stage) for stage in STAGES}
        wish = (config, len(tasks), batch, *size)
        options = dict(itemsize=form.maps.itemsize)
        peak, side = peak_bytes(*wish, **options), tile_side(*wish, available, **options)
        rows.append({"size": list(size), "flops": work, "peak_bytes": peak, "tile": side})
    return {
        "tasks": [{"name": t.name, "kind": t.kind, "channels": t.channels} for t in tasks],
        "mechanism": _mechanism(config),
        "network": _network(config),
        "parameters": _parameters(model),
        "parameter_bytes": sum(p.numel() for p in model.parameters()) * form.maps.itemsize,
        "transformed_bytes": _transformed(model) * form.maps.itemsize if form.pack else 0,
        "device": str(device),
        "precision": precision,
        "batch": batch,
        "available_bytes": available,
        "sizes": rows,
    }


def _mechanism(config) -> str:
    if config.diffusion == "none":
        return "none: the initial network alone"
    signal = {"feature": "features", "prediction": "predictions (logits)"}[config.diffusion]
    steps = len(config.betas or range(config.steps))
    extra = ", as a correction of the initial map" if config.residual else ""
    extra += f", without {' and '.join(config.without)}" if config.without else ""
    sampler, eta = config.sampler_for()
    extra += f", sampler {sampler}" + ("" if eta is None else f" with eta {eta:g}")
    return f"{steps} step{'' if steps == 1 else 's'} of denoising {signal}{extra}"


def _network(config) -> str:
    width = f" of width {config.backbone_width}" if config.backbone in DEPTHS else ""
    text = f"encoder {config.backbone}{width}, maps of {config.width} channels at 1/8 resolution"
    if config.diffusion == "none":
        return text
    side = 8 * config.token_reduction
    return f"{text}, {config.blocks} cross blocks of {config.heads} heads, a token for {side}x{side} pixels"


def _parameters(model: DiffusionMTL | MultiTaskBaseline) -> dict[str, int]:
    """Part -> parameters."""
    initial = model.initial
    parts = {
        "encoder": [initial.backbone],
        "initial decoders": [initial.embed, initial.decoders, initial.heads],
    }
    if isinstance(model, DiffusionMTL):
        net, denoiser = model.mtdnet, model.mtdnet.denoiser
        parts["condition"] = [net.condition]
        parts["cross blocks"] = [denoiser.blocks, denoiser.time_embedding]
        parts["denoising decoders"] = [denoiser.pre_layers, denoiser.trunks, net.heads]
    return {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}


def _transformed(model: nn.Module) -> int:
    """Numbers that the engine keeps beside the parameters: transformed weights of the 3x3 convolutions behind
    the encoder, but for the condition's, which has another form."""
    total = 0
    for name, module in model.named_modules():
        if name.startswith("initial.backbone") or not isinstance(module, nn.Conv2d):
            continue
        if module.kernel_size == (3, 3) and "condition" not in name:
            total += FREQUENCIES * module.in_channels * -(-module.out_channels // PANEL) * PANEL
    return total


def print_model(name: str, facts: dict) -> None:
    """Print `model_facts` as tables."""
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
    beside = f", and {mib(transformed)} of transformed weights" if transformed else ""
    own = f"{mib(facts['parameter_bytes'])} of parameters{beside}"
    head.add_row("engine", f"{own} ({facts['device']}, {facts['precision']})")
    available = facts["available_bytes"]
    told = "not known here" if available is None else f"{mib(available)}, planned with {SHARE:.0%} of it"
    head.add_row("free memory", told)
    console.print(head)
    console.print(_size_table(facts))
    say("GFLOP: two for a multiply-add. Peak memory: beside the engine's own, predicted to about a third.")
    say("Tiles: what the engine does with an image here, unless `dmtl predict --tile` says otherwise.")


def _size_table(facts: dict) -> Table:
    batch = facts["batch"]
    title = f"\nA prediction of all tasks, {batch} image{'' if batch == 1 else 's'} at once"
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
        table.add_row("{} x {}".format(*row["size"]), *figures, mib(row["peak_bytes"]), tile)
    return table


def _channels(number: int) -> str:
    return f"{number} channel{'' if number == 1 else 's'}"
