"""DiffusionMTL: the initial network and MTDNet behind one call; and the plain baselines made of the same
parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dmtl.diffusion import CounterNoise, NoiseSource
from dmtl.errors import CheckpointError, ConfigError
from dmtl.models.config import ModelConfig
from dmtl.models.initial import InitialNetwork, pad_image, upsample
from dmtl.models.mtdnet import MTDNet
from dmtl.models.weights import load_state, read_weights, write_weights
from dmtl.tasks import Task, task_from_spec


@dataclass(frozen=True)
class Prediction:
    """Logits at the image's size.

    final: task -> [n, C_T, H, W]; n = B, or the task's labelled rows where `labelled` was given.
    initial: the same rows and tasks as predicted by the initial network.
    trace: task -> list of [n, C_T, H, W] after every denoising step, the noisiest first; empty unless asked
    for.
    """

    final: dict[str, Tensor]
    initial: dict[str, Tensor]
    trace: dict[str, list[Tensor]]


torch.export.register_dataclass(Prediction, serialized_type_name="dmtl.models.Prediction")


class _DenseModel(nn.Module):
    """What DiffusionMTL and its baselines share: configuration, tasks, the initial network, files."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if not config.tasks:
            raise ConfigError("model.tasks must name at least one task, got none")
        self.config = config
        self.tasks: dict[str, Task] = {}
        for spec in config.tasks:
            task = task_from_spec(spec)
            if task.name in self.tasks:
                raise ConfigError(f"model.tasks must be distinct, got {task.name!r} twice")
            self.tasks[task.name] = task
        self.channels = {name: task.channels for name, task in self.tasks.items()}
        self.initial = InitialNetwork(config, self.channels)

    def initial_prediction(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        labelled: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """The initial network's maps, as initial and as final ones; arguments as in
        `DiffusionMTL.forward`."""
        self._check_image(image)
        rows = dict.fromkeys(self._chosen(tasks)) if labelled is None else _labelled_rows(self, labelled)
        padded = pad_image(image)
        _, initial = self.initial(padded)
        maps = {
            t: upsample(_take(initial[t], r), padded.shape[-2:], image.shape[-2:]) for t, r in rows.items()
        }
        return Prediction(maps, maps, {})

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` into `directory`, each atomically."""
        write_weights(directory, self.config.to_dict(), self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> _DenseModel:
        """Reads what `save_pretrained` wrote. Raises CheckpointError where files are missing, damaged or
        foreign."""
        model = load_model(directory)
        if cls is not _DenseModel and not isinstance(model, cls):
            raise ConfigError(
                f"{directory}: holds a {type(model).__name__} (diffusion = {model.config.diffusion!r}), "
                f"expected a {cls.__name__}"
            )
        return model

    def _check_image(self, image: Tensor) -> None:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{type(self).__name__}: image must be a float tensor, got {kind}")
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(
                f"{type(self).__name__}: image must have shape [B, 3, H, W], got {list(image.shape)}"
            )
        if 0 in image.shape[2:]:
            raise ValueError(
                f"{type(self).__name__}: image must have at least one pixel, got shape {list(image.shape)}"
            )
        expected = self.initial.embed.weight.dtype
        if image.dtype != expected and not torch.is_autocast_enabled(image.device.type):
            raise TypeError(
                f"{type(self).__name__}: image must be of the model's dtype {expected}, got {image.dtype}"
            )

    def _chosen(self, tasks: Iterable[str] | None) -> list[str]:
        names = list(self.tasks if tasks is None else tasks)
        for name in names:
            if name not in self.tasks:
                raise ValueError(
                    f"{type(self).__name__}: tasks must be among {', '.join(self.tasks)}, got {name!r}"
                )
        return names


class DiffusionMTL(_DenseModel):
    """Initial network + MTDNet (CVPR 2024, arXiv 2403.15389).

    Example:
        >>> model = DiffusionMTL.from_pretrained("runs/demo/diffusion/model")
        >>> maps = model(image).final                     # image [B, 3, H, W], ImageNet-normalised float
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if config.diffusion == "none":
            raise ConfigError(
                'model.diffusion must be "feature" or "prediction" for DiffusionMTL, got "none"'
            )
        self.mtdnet = MTDNet(config, self.channels)

    def forward(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        labelled: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        eta: float | None = None,
        noise: NoiseSource | None = None,
        trace: bool = False,
    ) -> Prediction:
        """Predicts the chosen tasks for every image, or (training) the labelled pairs alone.

        Args:
            image: float [B, 3, H, W], ImageNet-normalised, any H and W (padded inside to multiples of 32,
            cropped back).
            tasks: names, default all. The initial network always computes all: the condition needs them.
            labelled: task -> int64 rows of the batch that have its label; only these are denoised. Excludes
            `tasks`.
            steps: denoising steps, default as trained.
            eta: 1 ancestral, 0 deterministic, default as configured.
            noise: default `CounterNoise(0)`.
            trace: also return the logits after every step.
        """
        self._check_image(image)
        if labelled is not None and tasks is not None:
            raise ValueError("DiffusionMTL: tasks and labelled must not both be given")
        rows = dict.fromkeys(self._chosen(tasks)) if labelled is None else _labelled_rows(self, labelled)
        padded = pad_image(image)
        features, initial = self.initial(padded)
        frame, size = padded.shape[-2:], image.shape[-2:]
        initial_maps = {t: upsample(_take(initial[t], r), frame, size) for t, r in rows.items()}
        if not rows:
            return Prediction({}, {}, {})
        plan = self.mtdnet.plan(steps, eta, image.device)
        steps_logits = self.mtdnet(features, initial, rows, plan, CounterNoise(0) if noise is None else noise)
        final = {task: upsample(m, frame, size) for task, m in steps_logits[-1].items()}
        traced = {t: [upsample(s[t], frame, size) for s in steps_logits] for t in rows} if trace else {}
        return Prediction(final, initial_maps, traced)


class MultiTaskBaseline(_DenseModel):
    """The initial network alone: plain multi-task learning (MTL), or single-task learning (STL) with one
    task."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if config.diffusion != "none":
            raise ConfigError(
                f'model.diffusion must be "none" for MultiTaskBaseline, got {config.diffusion!r}'
            )

    def forward(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        labelled: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        eta: float | None = None,
        noise: NoiseSource | None = None,
        trace: bool = False,
    ) -> Prediction:
        """As `DiffusionMTL.forward`; steps, eta and noise have no meaning here and the trace is empty."""
        return self.initial_prediction(image, tasks, labelled=labelled)


def _labelled_rows(model: _DenseModel, labelled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for task in model._chosen(labelled):
        rows = labelled[task]
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
            got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(
                f"{type(model).__name__}: labelled[{task!r}] must be an int64 tensor of rows, got {got}"
            )
    return {task: labelled[task] for task in model.tasks if task in labelled and len(labelled[task])}


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def build_model(config: ModelConfig) -> DiffusionMTL | MultiTaskBaseline:
    """The model that a configuration describes, freshly initialised."""
    return MultiTaskBaseline(config) if config.diffusion == "none" else DiffusionMTL(config)


def load_model(directory: str | Path) -> DiffusionMTL | MultiTaskBaseline:
    """Reads `config.json` and `model.safetensors`; returns the model in eval mode on the CPU."""
    config, state = read_weights(directory)
    try:
        model = build_model(ModelConfig.from_dict(config))
    except ConfigError as error:
        raise CheckpointError(f"{Path(directory) / 'config.json'}: {error}") from None
    load_state(model, state, str(directory))
    return model.eval()
