"""Build a model from a name or a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dmtl.errors import ConfigError, did_you_mean
from dmtl.models.config import ModelConfig
from dmtl.models.diffusion_mtl import DiffusionMTL, MultiTaskBaseline
from dmtl.models.encoder_weights import load_backbone, load_pretrained
from dmtl.tasks import Task

MODELS: dict[str, type[DiffusionMTL] | type[MultiTaskBaseline]] = {
    "diffusionmtl": DiffusionMTL,
    "mtl": MultiTaskBaseline,
}


def create_model(
    model: str | ModelConfig,
    tasks: Mapping[str, Task] | Iterable[Task | Mapping[str, Any] | str] | None = None,
    *,
    pretrained: bool | str | Path = False,
    **options: Any,
) -> DiffusionMTL | MultiTaskBaseline:
    """Build a model with random weights.

    Args:
        model: "diffusionmtl", "mtl" (the multi-task baseline without diffusion), or a configuration.
        tasks: what to predict: the tasks of a data set (`data.tasks`), task objects, specifications, or names
            such as "semseg". Required unless the configuration names them.
        pretrained: True loads the encoder's ImageNet weights; a path loads them from that file.
        options: fields of `ModelConfig`, such as backbone, width, steps.

    Returns:
        The model, on the CPU and in training mode.

    Raises:
        ConfigError: a name or option is unknown (the message suggests the nearest one), there are no tasks, a
            value is invalid, or ImageNet weights are not available.
        CheckpointError: the file with the encoder's weights is missing, damaged or of another encoder.

    Examples:
        >>> model = create_model("diffusionmtl", tasks=["semseg", "depth"], backbone="efficientnet_lite0")
    """
    if isinstance(model, ModelConfig):
        kind = MultiTaskBaseline if model.diffusion == "none" else DiffusionMTL
        known = dataclasses.asdict(model)
    elif model in MODELS:
        kind = MODELS[model]
        known = {"diffusion": "none"} if kind is MultiTaskBaseline else {}
    else:
        hint = did_you_mean(model, MODELS)
        raise ConfigError(f"create_model: model must be one of {', '.join(MODELS)}, got {model!r}{hint}")
    if tasks is not None:
        known["tasks"] = tasks
    built = kind(ModelConfig.from_dict(known | options))
    if pretrained is True:
        load_pretrained(built.initial.backbone, built.config.backbone)
    elif pretrained:
        load_backbone(built.initial.backbone, pretrained)
    return built
