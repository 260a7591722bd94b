"""Small models that the tests of models and training share."""

from __future__ import annotations

import torch

from dmtl.models import DiffusionMTL, ModelConfig, MultiTaskBaseline, create_model
from dmtl.tasks import make_task

TASKS = {
    "semseg": make_task("semseg", classes=4),
    "normals": make_task("normals"),
    "edge": make_task("edge"),
    "heat": make_task("heat", "scalar"),
}


def small_config(tasks=tuple(TASKS), **options) -> ModelConfig:
    """A network of a hundredth of the published size."""
    small = dict(width=32, backbone_width=8, blocks=2, decoder_blocks=1, beta_start=0.01, beta_end=0.1)
    return ModelConfig(tasks=[TASKS[task].spec() for task in tasks], **(small | options))


def small_model(seed: int = 0, **options) -> DiffusionMTL | MultiTaskBaseline:
    """In eval mode, every parameter and statistic random, so that nothing hides behind a zero or a one."""
    model = create_model(small_config(**options)).eval()
    g = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=g)
        if value.dim() > 1:
            value.copy_(noise * value[0].numel() ** -0.5)
        else:
            value.copy_(
                0.1 * noise
                + (1.0 if name.endswith(("running_var", "norm.weight", "bn1.weight", "bn2.weight")) else 0.0)
            )
            if name.endswith("running_var"):
                value.abs_().clamp_(min=0.5)
    return model
