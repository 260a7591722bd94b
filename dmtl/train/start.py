"""Start training from the weights of a trained model."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, ModelConfig, MultiTaskBaseline, from_pretrained
from dmtl.nn.resnet import DEPTHS
from dmtl.tasks import Task
from dmtl.train.optim import names_below

_ARCHITECTURE = ("backbone", "width", "decoder_blocks")
_CHAIN = ("diffusion", "heads", "blocks", "mlp_ratio", "token_reduction", "residual", "signal_scale")
_PARTS = {"MTDNet": "mtdnet", "skip decoder": "skip"}
_CONDITION = "mtdnet.condition.conv.weight"  # [C, sum of the tasks' C_T, 3, 3]


def start_from(model: DiffusionMTL | MultiTaskBaseline, source: str, frozen: Collection[str] = ()) -> str:
    """Load the weights of a trained model into a new one.

    A task keeps its decoders and heads if its logits mean the same in both models. Weights of other tasks,
    and of parts that the trained model lacks (MTDNet, the skip decoder), stay as they are.

    Args:
        model: the new model.
        source: the trained model, as for `from_pretrained`.
        frozen: entries of `optim.freeze`.

    Returns:
        One line for the user: what was loaded and what was not.

    Raises:
        CheckpointError: the trained model is missing or damaged.
        ConfigError: the architectures differ, or a part would be frozen that the trained model lacks; the
            message names the options or a parameter.
    """
    trained = from_pretrained(source)
    _check(model.config, trained.config, source)
    kept = [
        name
        for name, task in model.tasks.items()
        if name in trained.tasks and _meaning_of_logits(task) == _meaning_of_logits(trained.tasks[name])
    ]
    state, known = model.state_dict(), trained.state_dict()
    left = (*_prefixes(model, [name for name in model.tasks if name not in kept]), _CONDITION)
    shared = _shared(model, trained)
    if "skip decoder" not in shared:
        left += ("skip.",)
    loaded = {key: known[key] for key in state if key in known and not key.startswith(left)}
    if _CONDITION in state and _CONDITION in known:
        loaded[_CONDITION] = _condition(state[_CONDITION], model, known[_CONDITION], trained, kept)
    for key, value in loaded.items():
        if state[key].shape != value.shape:
            raise ConfigError(
                f"optim.weights: {source} has {key} of shape {list(value.shape)}, expected "
                f"{list(state[key].shape)}; set the options with which it was trained"
            )
    new = [name for name, _ in model.named_parameters() if name not in loaded]
    for entry in frozen:
        if below := names_below(entry, new):
            raise ConfigError(
                f"optim.freeze: {entry!r} has {below[0]}, which would stay random because {source} has not "
                "trained it; freeze only trained parts"
            )
    for key, value in loaded.items():
        state[key].copy_(value)
    return _described(model, trained, source, [*kept, *shared])


def _check(mine: ModelConfig, theirs: ModelConfig, source: str) -> None:
    names = list(_ARCHITECTURE)
    if mine.backbone in DEPTHS:  # other encoders have one width
        names.append("backbone_width")
    if "none" not in (mine.diffusion, theirs.diffusion):
        names += _CHAIN
    differing = [name for name in names if getattr(mine, name) != getattr(theirs, name)]
    if differing:
        wrong = ", ".join(f"model.{name} = {getattr(theirs, name)}" for name in differing)
        got = ", ".join(str(getattr(mine, name)) for name in differing)
        raise ConfigError(f"optim.weights: {source} has {wrong}, got {got}; set the same values")


def _meaning_of_logits(task: Task) -> tuple:
    return task.meaning(), task.decoding, task.channels


def _prefixes(model: nn.Module, tasks: Collection[str]) -> tuple[str, ...]:
    """Return the beginnings of the names of all parameters that belong to one of these tasks."""
    tables = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleDict))
    return tuple(f"{name}.{task}." for name, table in tables for task in table if task in tasks)


def _condition(
    own: Tensor,
    model: DiffusionMTL | MultiTaskBaseline,
    known: Tensor,
    trained: DiffusionMTL | MultiTaskBaseline,
    kept: Collection[str],
) -> Tensor:
    """Return the condition's weight, with the trained columns of the kept tasks."""
    weight = own.clone()
    parts = dict(zip(trained.tasks, known.split(list(trained.channels.values()), dim=1), strict=True))
    for name, columns in zip(model.tasks, weight.split(list(model.channels.values()), dim=1), strict=True):
        if name in kept:
            columns.copy_(parts[name])
    return weight


def _described(
    model: DiffusionMTL | MultiTaskBaseline,
    trained: DiffusionMTL | MultiTaskBaseline,
    source: str,
    shared: Collection[str],
) -> str:
    """Return the line for the user; `shared` are the names of tasks and parts that keep their weights."""
    lists = {
        "new": [name for name in (*model.tasks, *_parts(model)) if name not in shared],
        "not used": [name for name in (*trained.tasks, *_parts(trained)) if name not in shared],
    }
    return f"starts from {source}" + "".join(f"; {k}: {', '.join(v)}" for k, v in lists.items() if v)


def _parts(model: nn.Module) -> list[str]:
    """Return the names of the parts that not every model has."""
    return [name for name, part in _PARTS.items() if getattr(model, part, None) is not None]


def _shared(model: DiffusionMTL | MultiTaskBaseline, trained: DiffusionMTL | MultiTaskBaseline) -> list[str]:
    """Return the names of the parts that take the trained weights.

    A skip decoder takes them only if it refines the same signal.
    """
    both = [name for name in _parts(model) if name in _parts(trained)]
    same = model.config.diffusion == trained.config.diffusion
    return [name for name in both if name != "skip decoder" or same]
