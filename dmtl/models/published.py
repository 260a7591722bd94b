"""Convert between the published checkpoint format and that of this package, without loss.

The published file is written by `torch.save` of {optimizer, scheduler, model, epoch, iter_count}. `model`
holds 410 tensors, whose names may have DistributedDataParallel's prefix `module.`. Only tensors and plain
containers are unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.diffusion import Schedule
from dmtl.errors import CheckpointError, ConfigError
from dmtl.models.config import ModelConfig
from dmtl.models.diffusion_mtl import DiffusionMTL, MultiTaskBaseline
from dmtl.models.mtdnet import schedule_of
from dmtl.models.weights import check_state, write_torch
from dmtl.nn.resnet import DEPTHS
from dmtl.tasks import make_task

TASK_ORDER = ("semseg", "human_parts", "sal", "normals", "edge")
"""The order in which the published network concatenates its predictions."""

# (prefix in the published format, prefix here); the star is the name of a task
_PREFIXES = (
    ("backbone.", "initial.backbone."),
    ("backbone_embed.", "initial.embed."),
    ("preliminary_dec.", "initial.decoders."),
    ("preliminary_head.*.0.", "initial.heads.*."),
    ("diffusion_model.pred_combinator.out_layer.", "mtdnet.condition.conv."),
    ("diffusion_model.denoiser.crossblocks.", "mtdnet.denoiser.blocks."),
    ("diffusion_model.denoiser.pre_layer.", "mtdnet.denoiser.pre_layers."),
    ("diffusion_model.denoiser.task_heads.", "mtdnet.denoiser.trunks."),
    ("diffusion_model.denoiser.final_task_heads.*.linear_pred.", "mtdnet.heads.*."),
    ("diffusion_model.denoiser.t_embedder.", "mtdnet.denoiser.time_embedding."),
)
_SCHEDULE = "diffusion_model."


def convert_to_published(model: DiffusionMTL | MultiTaskBaseline, target: str | Path) -> None:
    """Write a model as a file in the published format, with empty states of optimiser and scheduler.

    Raises:
        ConfigError: the published format cannot hold such a model.
        OSError: the file cannot be written.
    """
    config = model.config
    unusual = config.diffusion != "feature" or config.token_reduction != 4 or config.output_stride != 8
    if not isinstance(model, DiffusionMTL) or unusual or config.residual or config.without:
        raise ConfigError(
            "only models with Feature Diffusion, tokens at 1/32, maps at 1/8, no residual output and no "
            f"ablation fit into the published format, got diffusion = {config.diffusion!r}, "
            f"token_reduction = {config.token_reduction}, output_stride = {config.output_stride}, "
            f"residual = {config.residual}, without = {list(config.without)}"
        )
    state = {f"module.{key}": value for key, value in published_state(model).items()}
    content = {"optimizer": {}, "scheduler": {}, "model": state, "epoch": 0, "iter_count": 0}
    write_torch(target, content)


def model_from_published(state: Mapping[str, Tensor], source: str = "state") -> DiffusionMTL:
    """Build a Feature Diffusion model from tensors under their published names.

    Sizes, tasks, S and betas are inferred from the tensors. `source` names them in messages.

    Raises:
        CheckpointError: the tensors are not those of a published model.
    """
    config = config_from_published(state, source)
    model = DiffusionMTL(config).eval()
    check_state(published_state(model), state, source)  # first, because its messages use the published names
    model.load_state_dict({our_name(key): value for key, value in state.items() if not _is_buffer(key)})
    return model


def published_state(model: DiffusionMTL) -> dict[str, Tensor]:
    """Return a model's tensors under their published names, including the twelve buffers of the schedule."""
    state = {published_name(key): value for key, value in model.state_dict().items()}
    buffers = published_buffers(schedule_of(model.config))
    return state | {_SCHEDULE + name: table for name, table in buffers.items()}


def published_buffers(schedule: Schedule) -> dict[str, Tensor]:
    """Return the twelve float32 buffers of a schedule in the published checkpoint, by name."""
    betas, abar = schedule.betas, schedule.abar
    before = np.concatenate([[1.0], abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    tables = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - abar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - abar),
    }
    return {name: torch.from_numpy(table).float() for name, table in tables.items()}


def config_from_published(state: Mapping[str, Tensor], source: str = "state") -> ModelConfig:
    """Infer the configuration of a published state dict.

    It does not store the number of heads, which is four.
    """
    try:
        return _read_config(state, source)
    except KeyError as error:
        raise CheckpointError(
            f"{source}: not a published DiffusionMTL checkpoint, it lacks {error}"
        ) from None
    except (ConfigError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: not a published DiffusionMTL checkpoint ({error})") from None


def _read_config(state: Mapping[str, Tensor], source: str) -> ModelConfig:
    tasks = {
        m[1]: v.shape[0]
        for k, v in state.items()
        if (m := re.fullmatch(r"preliminary_head\.(\w+)\.0\.weight", k))
    }
    if not tasks:
        raise KeyError("preliminary_head.<task>.0.weight")
    betas = state[_SCHEDULE + "betas"]
    depths = tuple(_count(state, rf"backbone\.layer{i}\.(\d+)\.conv1\.weight") for i in range(1, 5))
    width = state["backbone_embed.weight"].shape[0]
    hidden = state["diffusion_model.denoiser.crossblocks.0.mlp.fc1.weight"].shape[0]
    if depths not in DEPTHS.values():
        raise CheckpointError(
            f"{source}: the backbone has {depths} blocks, expected one of {list(DEPTHS.values())}"
        )
    order = sorted(tasks, key=lambda t: TASK_ORDER.index(t) if t in TASK_ORDER else len(TASK_ORDER))
    return ModelConfig(
        tasks=[_spec(task, tasks[task]) for task in order],
        backbone=next(name for name, d in DEPTHS.items() if d == depths),
        backbone_width=state["backbone.conv1.weight"].shape[0],
        width=width,
        decoder_blocks=_count(state, rf"preliminary_dec\.{order[0]}\.(\d+)\.conv1\.weight"),
        blocks=_count(state, r"diffusion_model\.denoiser\.crossblocks\.(\d+)\.norm1\.weight"),
        mlp_ratio=hidden // width,
        **_schedule(betas, {k.removeprefix(_SCHEDULE): v for k, v in state.items() if _is_buffer(k)}, source),
    )


def _schedule(betas: Tensor, buffers: Mapping[str, Tensor], source: str) -> dict:
    """Return S and the range of betas if they reproduce all stored buffers bit for bit; otherwise all
    betas."""
    values = betas.double().flatten().tolist()
    if not values or not all(0 < value < 1 for value in values):
        raise CheckpointError(f"{source}: {_SCHEDULE}betas must be numbers between 0 and 1, got {values[:8]}")
    candidate: dict[str, Any]
    # Betas are stored as float32; use the shortest decimals that reproduce them.
    for digits in (4, 6, 7, 8, 9):
        start, end = (float(f"{v:.{digits}g}") for v in (values[0], values[-1]))
        if 0 < start <= end < 1:
            candidate = dict(steps=len(values), beta_start=start, beta_end=end)
            if _same(published_buffers(schedule_of(ModelConfig(**candidate))), buffers):
                return candidate
    candidate = dict(betas=values)
    ours = published_buffers(schedule_of(ModelConfig(**candidate)))
    for name, table in buffers.items():
        if (
            name not in ours
            or table.shape != ours[name].shape
            or not torch.allclose(table, ours[name], rtol=1e-4, atol=1e-6)
        ):
            raise CheckpointError(
                f"{source}: buffer {_SCHEDULE}{name} does not belong to a schedule with the stored betas"
            )
    return candidate


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _is_buffer(key: str) -> bool:
    return key.startswith(_SCHEDULE) and "." not in key.removeprefix(_SCHEDULE)


def published_name(key: str) -> str:
    """Return the published name of a tensor of our models."""
    return _translated(key, ((ours, published) for published, ours in _PREFIXES))


def our_name(key: str) -> str:
    """Return the name in our models of a published tensor."""
    return _translated(key, _PREFIXES)


def _translated(key: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for source, target in prefixes:
        if match := re.match(re.escape(source).replace(r"\*", r"(\w+)"), key):
            return target.replace("*", "".join(match.groups())) + key[match.end() :]
    return key


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for key in state if (m := re.fullmatch(pattern, key))})


def _spec(task: str, channels: int) -> dict:
    if task in TASK_ORDER[:2]:
        return make_task(task, classes=channels).spec()
    return make_task(task).spec()
