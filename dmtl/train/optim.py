"""The optimiser of a run, frozen parameters, and the learning rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmtl.errors import ConfigError, did_you_mean
from dmtl.train.config import OptimConfig

_ENCODER = "initial.backbone"
_STAGE = re.compile(r"(?:net\.)?(?:model\.)?((?:layers?|stages|blocks|s)[._]?)(\d+)[._]")
"""Pattern of a numbered stage at the beginning of a parameter's name: "layer1." (ResNets), timm's "stages_0."
(ConvNeXt), "layers_0." (Swin), "blocks.0." (ViT, EfficientNet), "s1." (RegNet)."""


def optimizer_for(
    config: OptimConfig,
    model: nn.Module,
    extra: Iterable[nn.Parameter] = (),
    objectives: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Create Adam or AdamW over the trained parameters, with one fused kernel per group.

    Each group has a `name` and a `factor` on the schedule's learning rate: "initial" 1 (after groups of the
    encoder if its factors differ from 1), "mtdnet" `config.mtdnet_lr`, "weighting" 1, "objectives" 1.
    Parameters in `config.freeze` are frozen here (`frozen`) and belong to no group.

    Args:
        config: the section `optim`.
        model: network with parameters `initial.*` and, with diffusion, `mtdnet.*`.
        extra: parameters of the loss weighting; a separate group, without weight decay.
        objectives: parameters of extra losses; a separate group.

    Raises:
        ConfigError: an entry of `config.freeze` matches no parameter, or nothing is left to train.
    """
    freeze(config, model)
    stages = _encoder_stages(config, model)
    groups: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("mtdnet."):
            group, factor = "mtdnet", config.mtdnet_lr
        else:
            group, factor = stages.get(name, ("initial", 1.0))
        if parameter.requires_grad:
            groups.setdefault(group, {"params": [], "factor": factor, "name": group})["params"].append(
                parameter
            )
    if not groups:
        raise ConfigError(f"optim.freeze must leave something to train, got {config.freeze}")
    if extra := list(extra):
        groups["weighting"] = {"params": extra, "factor": 1.0, "name": "weighting", "weight_decay": 0.0}
    if objectives := list(objectives):
        groups["objectives"] = {"params": objectives, "factor": 1.0, "name": "objectives"}
    cls = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return cls(list(groups.values()), lr=config.lr, weight_decay=config.weight_decay, fused=True)


def _encoder_stages(config: OptimConfig, model: nn.Module) -> dict[str, tuple[str, float]]:
    """Return parameter name -> (group, factor) for the encoder; empty if all its factors are 1.

    The factor of the last stage is `backbone_lr`; that of each earlier stage is `layer_decay` times the
    factor of the next one. The stem counts as a stage. An encoder without numbered stages has the factor
    `backbone_lr`. Normalisation after the last stage belongs to that stage.
    """
    names = [name for name, _ in model.named_parameters() if name.startswith(_ENCODER + ".")]
    if config.layer_decay == 1:
        plain = dict.fromkeys(names, (_ENCODER, config.backbone_lr))
        return {} if config.backbone_lr == 1 else plain
    stages = _stage_of([name.removeprefix(_ENCODER + ".") for name in names])
    depth = {stage: i for i, stage in enumerate(dict.fromkeys(stages))}
    return {
        name: (
            f"{_ENCODER}.{stage}" if stage else _ENCODER,
            config.backbone_lr * config.layer_decay ** (len(depth) - 1 - depth[stage]),
        )
        for name, stage in zip(names, stages, strict=True)
    }


def _stage_of(names: list[str]) -> list[str]:
    """Return the stage of each encoder parameter: "stem", then "layer1" and so on in forward order.

    All are "" if stages cannot be identified: there are fewer than two, of several kinds, or not in order.
    """
    found = [_STAGE.match(name) for name in names]
    kinds = {match[1] for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    if len(kinds) != 1 or len(set(numbers)) < 2 or numbers != sorted(numbers):
        return [""] * len(names)
    stages, current = [], "stem"
    for match in found:
        current = (match[1] + match[2]).replace("_", ".") if match else current
        stages.append(current)
    return stages


def names_below(entry: str, names: Iterable[str]) -> list[str]:
    """Return the names of parameters that an entry of `optim.freeze` means, of these."""
    return [name for name in names if f"{name}.".startswith(f"{entry.rstrip('.')}.")]


def freeze(config: OptimConfig, model: nn.Module) -> list[str]:
    """Freeze every parameter that `config.freeze` names; return their names.

    An entry is the full name of a module or parameter: "initial.backbone.layer1" freezes everything in that
    module, but not "initial.backbone.layer10". `set_train` handles batch norms.

    Raises:
        ConfigError: an entry is not the name of a module or parameter; the message suggests the nearest one.
    """
    names = [name for name, _ in model.named_parameters()]
    held: dict[str, None] = {}
    for entry in config.freeze:
        below = names_below(entry, names)
        if not below:
            modules = {name.rsplit(".", end)[0] for name in names for end in range(name.count(".") + 1)}
            by_length = sorted(modules, key=len)
            raise ConfigError(
                f"optim.freeze must name parts of the model (such as {names[0].rpartition('.')[0]!r}), "
                f"got {entry!r}{did_you_mean(entry, by_length)}"
            )
        held |= dict.fromkeys(below)
    for name in held:
        model.get_parameter(name).requires_grad_(False)
    return list(held)


def set_train(model: nn.Module, config: OptimConfig) -> None:
    """Call `model.train()`, except for batch norms that keep their statistics.

    With `config.freeze_bn` these are all batch norms, otherwise those with frozen weights, because a part
    that is not trained must not change.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if config.freeze_bn or (own and not any(p.requires_grad for p in own)):
                module.eval()


def total_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps: whole epochs if `config.epochs` is set, otherwise
    `config.steps`."""
    return config.epochs * steps_per_epoch if config.epochs else config.steps


def schedule(config: OptimConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function: step, from 0 -> factor on `config.lr`.

    It is a linear warm-up times the schedule's shape: min(1, (step + 1) / warmup) (1 - step / steps)^power by
    default.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"schedule: steps_per_epoch must be at least 1, got {steps_per_epoch}")

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        return warm * _shape(config, step, steps_per_epoch)

    return factor


def _shape(config: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """Compute the schedule without warm-up: from 1 to `final_lr` for "poly" and "cosine".

    With t steps of T done (whole epochs, if it changes once per epoch), s the shape and f = `final_lr`:
    f + (1 - f) s, where s = (1 - t / T)^power or (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter, ICLR 2017,
    arXiv 1608.03983).
    """
    total = total_steps(config, steps_per_epoch)
    done = step - step % steps_per_epoch if config.schedule_every == "epoch" else step
    done = min(done, total)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.gamma ** sum(done >= round(share * total) for share in config.milestones)
    if config.schedule == "poly":
        shape = (1 - done / total) ** config.power
    else:
        shape = (1 + math.cos(math.pi * done / total)) / 2
    return config.final_lr + (1 - config.final_lr) * shape
