"""Describe a model, the work of a prediction, and its memory on a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dmtl.engine.memory import DECODED, peak_bytes, tile_side
from dmtl.engine.numerics import PRECISIONS, Form, choose_form
from dmtl.engine.scale import downscale_for
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.models.config import ModelConfig
from dmtl.models.work import count, flops, parameters
from dmtl.nn.efficientnet import InvertedResidual, SeparableBlock
from dmtl.nn.resnet import DEPTHS
from dmtl.runtime.memory import available_bytes
from dmtl.tasks import Task
from dmtl.text import plural

STAGES = ("initial", "condition", "chain", "skip")  # decoding moves memory and computes almost nothing
# Transformed 3x3 weights have 36 numbers instead of 9 taps, and output channels padded to a multiple of 16.
FREQUENCIES, PANEL = 36, 16


def describe_model(
    model: DiffusionMTL | MultiTaskBaseline,
    device: torch.device,
    sizes: Iterable[tuple[int, int]],
    batch: int = 1,
) -> dict:
    """Describe a model, the operations of a prediction, and its memory.

    Bytes and operations are those of an engine with default options on the device: default precision, all
    tasks, steps as trained, one noise sample.

    Args:
        model: a model that was created or loaded.
        device: the device on which it will predict.
        sizes: (height, width) of images in pixels.
        batch: number of images in a batch.

    Returns:
        Values that can be written as JSON: tasks, mechanism, network, parameters, bytes, and a row for each
        size.
    """
    config, tasks = model.config, list(model.tasks.values())
    precision = PRECISIONS[device.type][0]
    form = choose_form(model, device, precision)
    available = available_bytes(device)
    history = model.mtdnet.plan(torch.device("cpu")).history if isinstance(model, DiffusionMTL) else 0
    rows = []
    for size in sizes:
        k = downscale_for(config.image_size, *size)
        seen = (-(-size[0] // k), -(-size[1] // k))
        parts = count(config, seen, batch)
        work = {stage: flops(part for part in parts if part.stage == stage) for stage in STAGES}
        wish = (config, len(tasks), batch, *seen)
        how: dict[str, Any] = {
            "itemsize": form.maps.itemsize,
            "history": history,
            "fused": form.fused,
        }
        peak = peak_bytes(*wish, **how)
        peak += DECODED * len(tasks) * batch * (size[0] * size[1] - seen[0] * seen[1])
        side = tile_side(*wish, available, **how)
        row = {"size": list(size), "seen": list(seen), "flops": work, "peak_bytes": peak, "tile": side}
        rows.append(row)
    return {
        "tasks": [
            {"name": t.name, "kind": t.kind, "channels": t.channels, "classes": _classes(t)} for t in tasks
        ],
        "mechanism": _mechanism(config),
        "network": _network(config),
        "parameters": {part: sum(n.values()) for part, n in parameters(model).items()},
        "parameter_bytes": sum(p.numel() for p in model.parameters()) * form.maps.itemsize,
        "transformed_bytes": _transformed(model, form),
        "device": str(device),
        "precision": precision,
        "batch": batch,
        "available_bytes": available,
        "sizes": rows,
    }


def _classes(task: Task) -> list[str]:
    """Return the names of class ids; [] if the maps of a task hold other values."""
    return [] if task.map_dtype.is_floating_point else list(task.label_names)


def _mechanism(config: ModelConfig) -> str:
    if config.diffusion == "none":
        return "none: the initial network alone"
    signal = {"feature": "features", "prediction": "predictions (logits)"}[config.diffusion]
    extra = ", as a correction of the initial prediction" if config.residual else ""
    extra += f", without {' and '.join(config.without)}" if config.without else ""
    sampler, eta = config.sampler_for()
    extra += f", sampler {sampler}" + ("" if eta is None else f" with eta {eta:g}")
    return f"{plural(config.steps, 'step')} of denoising {signal}{extra}"


def _network(config: ModelConfig) -> str:
    width = f" of width {config.backbone_width}" if config.backbone in DEPTHS else ""
    text = f"encoder {config.backbone}{width}, maps of {config.width} channels at 1/8 resolution"
    if config.output_stride == 4:
        text += ", final maps at 1/4"
    if config.diffusion == "none":
        return text
    side = 8 * config.token_reduction
    return f"{text}, {config.blocks} cross blocks of {config.heads} heads, a token for {side}x{side} pixels"


def _transformed(model: nn.Module, form: Form) -> int:
    """Count the bytes of transformed weights that the engine keeps in addition to the parameters.

    They belong to the 3x3 convolutions after the encoder, except that of the condition, which has another
    form, and to fused blocks of the encoder.
    """
    total = fused = 0
    for name, module in model.named_modules():
        if isinstance(module, (SeparableBlock, InvertedResidual)):
            fused += sum(p.numel() for p in module.parameters())
        if name.startswith("initial.backbone") or not isinstance(module, nn.Conv2d):
            continue
        if module.kernel_size == (3, 3) and "condition" not in name:
            total += FREQUENCIES * module.in_channels * -(-module.out_channels // PANEL) * PANEL
    transformed = total * form.maps.itemsize if form.pack else 0
    return transformed + (fused * torch.float32.itemsize if form.fused else 0)
