"""What is predicted: models, sizes and batches, the standard cases, and the noise that all share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmtl.diffusion import CounterNoise
from dmtl.diffusion.pairs import Pairs
from dmtl.models import DiffusionMTL, ModelConfig, create_model, from_pretrained
from dmtl.models.initial import pad_image
from dmtl.models.pretrained import BUILTIN
from dmtl.tasks import Task, make_task

Noise = Mapping[str, Tensor]  # task -> [draws, B, C, h, w]

PUBLISHED = "published"  # name of the case of the published network
PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
_CLASSES = {"semseg": 21, "human_parts": 7}


@dataclass(frozen=True)
class Case:
    """One prediction. `model`: name or folder of a trained model, or None for random weights with the shape
    in `options` (`ModelConfig`'s fields; the published network if empty). With `pretrained`, the encoder
    has its ImageNet weights. JSON-able by `dataclasses.asdict`.
    """

    size: tuple[int, int] = (512, 512)
    batch: int = 1
    steps: int | None = None
    tasks: tuple[str, ...] | None = None
    device: str = "cpu"
    model: str | None = None
    options: dict = field(default_factory=dict)
    all_tasks: tuple[str, ...] = PASCAL
    pretrained: bool = False

    @property
    def name(self) -> str:
        """Return the name of the network; with random weights of another shape, its encoder and mechanism."""
        if self.model is None and "backbone" in self.options:
            return f"{self.options['backbone']}, diffusion {self.options['diffusion']}"
        return self.model or PUBLISHED

    def described(self) -> dict:
        """Describe network and images, for a row."""
        return {"case": self.name, "size": list(self.size), "batch": self.batch}

    def build(self) -> torch.nn.Module:
        """Build the model on the CPU, in eval mode."""
        if self.model is not None:
            return from_pretrained(self.model)
        specs = [task.spec() for task in tasks_of(self)]
        torch.manual_seed(0)
        return create_model(ModelConfig(tasks=specs, **self.options), pretrained=self.pretrained).eval()

    def image(self, seed: int = 1) -> Tensor:
        """Return standard normal pixels [B, 3, H, W] on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.batch, 3, *self.size, generator=generator).to(self.device)

    def but(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)


def standard(device: str) -> list[Case]:
    """Return the standard cases: the published network, and the small model that comes with dmtl."""
    published = Case(device=device)
    small = of_model(BUILTIN).but(device=device)
    return [
        *(published.but(batch=batch) for batch in ((1, 8, 32) if device.startswith("cuda") else (1, 4))),
        *(small.but(size=size, batch=batch) for size in ((512, 512), (128, 160)) for batch in (1, 8)),
    ]


def of_model(model: str) -> Case:
    """Return the case of a trained model, given by name or folder."""
    return Case(model=model, all_tasks=tuple(from_pretrained(model).tasks))


def case_from(values: Mapping) -> Case:
    """Rebuild a case from its `dataclasses.asdict` after JSON."""
    return Case(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def tasks_of(case: Case) -> list[Task]:
    """Return the tasks of a model with random weights."""
    return [make_task(name, **_task_options(name)) for name in case.all_tasks]


def _task_options(name: str) -> dict:
    return {"classes": _CLASSES[name]} if name in _CLASSES else {}


def shared_noise(image: Tensor) -> CounterNoise:
    """Return the noise of `Predictor` and of exported files: that of sample 0 for every image."""
    return CounterNoise(0, torch.zeros(image.shape[0], dtype=torch.int64, device=image.device))


def drawn_noise(
    model: DiffusionMTL, image: Tensor, draws: int, source: CounterNoise | None = None
) -> dict[str, Tensor]:
    """Return the noise of a source (default: that of the model) as arrays {task: [draws, B, C, h, w]}."""
    from dmtl.ops import normal

    batch, (h, w) = image.shape[0], (side // 8 for side in pad_image(image).shape[-2:])
    arrays = {}
    for task, channels in model.channels.items():
        shape = (model.config.width if model.config.diffusion == "feature" else channels, h, w)
        keys = (source or CounterNoise(0)).draws(Pairs.of({task: None}, batch), image)
        arrays[task] = torch.stack([normal(keys(k)["key_B3"], shape, k) for k in range(draws)])
    return arrays
