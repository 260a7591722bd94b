"""DiffusionMTL, which joins the initial network and MTDNet; and the plain baselines, built from the same
parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmtl.diffusion import CounterNoise, NoiseSource
from dmtl.diffusion.pairs import take
from dmtl.errors import ConfigError
from dmtl.models.config import ModelConfig
from dmtl.models.initial import InitialNetwork, decode, pad_image, upsample
from dmtl.models.mtdnet import MTDNet
from dmtl.models.outputs import Maps, Prediction
from dmtl.models.skip import SkipDecoder
from dmtl.models.weights import write_weights
from dmtl.tasks import Task, known_tasks, task_from_spec


class _DenseModel(nn.Module):
    """Base class of DiffusionMTL and its baselines: configuration, tasks, the initial network, files."""

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
        self.skip: SkipDecoder | None = None
        if config.output_stride == 4:
            signals = (
                self.channels
                if config.diffusion == "prediction"
                else dict.fromkeys(self.channels, config.width)
            )
            # nn.Module's type stubs do not know `channels`.
            first: int = self.initial.backbone.channels[0]  # type: ignore[index,assignment]
            self.skip = SkipDecoder(first, signals, self.channels)

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return self.initial.embed.weight.device

    def initial_prediction(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        labelled: Mapping[str, Tensor] | None = None,
        upsampled: bool = True,
    ) -> Prediction:
        """Return the logits of the initial network as both initial and final prediction.

        `DiffusionMTL.forward` describes the arguments.
        """
        self._check_image(image)
        rows = self._rows(tasks, labelled)
        padded = pad_image(image)
        features, initial, encoded = self.initial(padded, self._learning(rows))
        sized = _sizer(padded, image, upsampled)
        logits = {task: take(initial[task], r) for task, r in rows.items()}
        if self.skip is not None and self.config.diffusion == "none" and rows:
            signals = {task: take(features[task], r) for task, r in rows.items()}
            logits = self.skip(self.skip.encode(encoded, padded), signals, logits, rows)
        maps = {task: sized(x) for task, x in logits.items()}
        return Prediction(maps, maps, {})

    def _learning(self, rows: Mapping[str, Tensor | None], apart: bool = True) -> Collection[str] | None:
        """Return the tasks whose decoders get a gradient from the loss; None: all.

        If the predictions of other tasks are used without gradient (`apart`), these are the tasks with rows.
        For a compiled network the result is None, because it would be recompiled for every set of tasks.
        """
        compiled = self.initial._compiled_call_impl is not None or torch.compiler.is_compiling()
        return tuple(rows) if apart and not compiled else None

    @torch.no_grad()
    def maps(
        self,
        image: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        steps: int | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        noise: NoiseSource | None = None,
    ) -> Maps:
        """Predict decoded maps: the final logits, decoded by `task.decode` without storing full-size logits.

        `DiffusionMTL.forward` describes the arguments.
        """
        options = dict(steps=steps, eta=eta, sampler=sampler, noise=noise)
        logits = self(image, tasks, upsampled=False, **options).final
        size = (image.shape[-2], image.shape[-1])
        decoded = {
            name: decode(self.tasks[name], x, size, self.config.output_stride) for name, x in logits.items()
        }
        return Maps(decoded, {name: x.isfinite().all() for name, x in logits.items()})

    def save_pretrained(self, directory: str | Path, *, half: bool = False) -> None:
        """Write `config.json` and `model.safetensors` into `directory`, each atomically.

        Args:
            directory: folder to write to; it is created if it does not exist.
            half: store the weights of convolutions and linear layers in float16, which halves the size (see
                `dmtl.models.weights.halve`). Loading converts them back to float32.
        """
        write_weights(directory, self.config.to_dict(), self.state_dict(), half)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub (extra `dmtl[hub]`) and return the address of the commit.

        Args:
            repo_id: "org/name"; the repository is created if it does not exist.
            options: those of `huggingface_hub.ModelHubMixin.push_to_hub`, such as private, token, branch.

        Raises:
            ConfigError: huggingface_hub is not installed.
        """
        from dmtl.models.hub import upload

        return upload(self, repo_id, **options)

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

    def _rows(
        self, tasks: Iterable[str] | None, labelled: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor | None]:
        """Return the requested tasks with their rows; None: all rows."""
        where = type(self).__name__
        if labelled is None:
            return dict.fromkeys(known_tasks(where, self.tasks, tasks))
        for task in known_tasks(where, self.tasks, labelled):
            rows = labelled[task]
            if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
                got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
                raise TypeError(f"{where}: labelled[{task!r}] must be an int64 tensor of rows, got {got}")
        return {task: labelled[task] for task in self.tasks if task in labelled and len(labelled[task])}


class DiffusionMTL(_DenseModel):
    """The initial network and MTDNet (CVPR 2024, arXiv 2403.15389).

    Examples:
        >>> model = dmtl.from_pretrained("runs/demo/diffusion")
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
        sampler: str | None = None,
        noise: NoiseSource | None = None,
        trace: bool = False,
        upsampled: bool = True,
    ) -> Prediction:
        """Predict the chosen tasks for every image or, in training, only the labelled pairs.

        Args:
            image: float [B, 3, H, W], ImageNet-normalised, any H and W (padded internally to multiples of 32,
                then cropped).
            tasks: names of the tasks to predict; None: all. The initial network always computes all of them,
                because the condition needs them.
            labelled: task -> int64 rows of the batch that have its label; only these are denoised. Cannot be
                used together with `tasks`.
            steps: number of denoising steps; None: as trained.
            eta: amount of noise of "ddim": 1 is ancestral, 0 deterministic; None: as configured.
            sampler: "ancestral", "ddim", "dpmpp_2m" or a registered one; None: as configured, or "ddim" if
                `eta` is set.
            noise: source of the noise; None: `CounterNoise(0)`.
            trace: also return the logits after every step.
            upsampled: True: upsample logits to the size of the image. False: leave them at 1/8 (final ones
                at 1/`output_stride`) of the padded image's size, as `ops.map_loss` expects them.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: a shape is wrong, a task is unknown, or both `tasks` and `labelled` are set.
        """
        self._check_image(image)
        if labelled is not None and tasks is not None:
            raise ValueError("DiffusionMTL: pass either tasks or labelled, not both")
        rows = self._rows(tasks, labelled)
        padded = pad_image(image)
        features, initial, encoded = self.initial(padded, self._learning(rows, self.config.detach_condition))
        sized = _sizer(padded, image, upsampled)
        initial_maps = {task: sized(take(initial[task], r)) for task, r in rows.items()}
        if not rows:
            return Prediction({}, {}, {})
        plan = self.mtdnet.plan(image.device, steps, eta, sampler)
        noise = CounterNoise(0) if noise is None else noise
        fine = None if self.skip is None else self.skip.encode(encoded, padded)
        del encoded
        states = self.mtdnet(features, initial, rows, plan, noise, trace)
        logits = [self.mtdnet.logits(state) for state in states]
        if self.skip is not None and fine is not None:
            refined = zip(states, logits, strict=True)
            logits = [self.skip(fine, state.by_task(), z, rows) for state, z in refined]
        final = {task: sized(map) for task, map in logits[-1].items()}
        traced = {task: [sized(state[task]) for state in logits] for task in rows} if trace else {}
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
        sampler: str | None = None,
        noise: NoiseSource | None = None,
        trace: bool = False,
        upsampled: bool = True,
    ) -> Prediction:
        """Predict as `DiffusionMTL.forward` does; steps, eta, sampler and noise are ignored, the trace is
        empty."""
        return self.initial_prediction(image, tasks, labelled=labelled, upsampled=upsampled)


def _sizer(padded: Tensor, image: Tensor, upsampled: bool) -> Callable[[Tensor], Tensor]:
    """Return a function that brings logits to the size that the `Prediction` shall have."""
    frame, size = (padded.shape[-2], padded.shape[-1]), (image.shape[-2], image.shape[-1])
    return (lambda logits: upsample(logits, frame, size)) if upsampled else (lambda logits: logits)
