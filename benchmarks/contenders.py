"""The contenders in prediction: the engine in each precision, and the two baselines.

All contenders turn an image into the same decoded maps: each is compared with the model in fp32, on the same
noise, before it is timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmtl.diffusion import CounterNoise
from dmtl.diffusion.pairs import Pairs
from dmtl.models import DiffusionMTL, ModelConfig, create_model, from_pretrained
from dmtl.models.initial import pad_image
from dmtl.nn.precision import tf32
from dmtl.tasks import Task, make_task

from .expert import MODES, Expert
from .published import Published

Noise = Mapping[str, Tensor]  # task -> [draws, B, C, h, w]

ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
"""Precision -> allowed distance of maps from the fp32 model's, see `difference`."""

NAMES = ("published", "expert", "dmtl")
_CLASSES = {"semseg": 21, "human_parts": 7}
PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
SIX = (*PASCAL, "depth")


@dataclass(frozen=True)
class Case:
    """One prediction. `model`: the folder of a trained model, or None for random weights with the shape in
    `options` (`ModelConfig`'s fields; the published network if empty). JSON-able by `dataclasses.asdict`."""

    size: tuple[int, int] = (512, 512)
    batch: int = 1
    steps: int | None = None
    tasks: tuple[str, ...] | None = None
    device: str = "cpu"
    model: str | None = None
    options: dict = field(default_factory=dict)
    all_tasks: tuple[str, ...] = PASCAL

    def build(self) -> torch.nn.Module:
        """Build the model on the CPU, in eval mode."""
        if self.model is not None:
            return from_pretrained(self.model)
        specs = [task.spec() for task in tasks_of(self)]
        torch.manual_seed(0)
        return create_model(ModelConfig(tasks=specs, **self.options)).eval()

    def image(self) -> Tensor:
        """Return standard normal pixels [B, 3, H, W] on the device."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, 3, *self.size, generator=generator).to(self.device)

    def but(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)


def case_from(values: Mapping) -> Case:
    """Rebuild a case from its `dataclasses.asdict` after JSON."""
    return Case(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def tasks_of(case: Case) -> list[Task]:
    """Return the tasks of a model with random weights."""
    return [make_task(name, **_task_options(name)) for name in case.all_tasks]


def _task_options(name: str) -> dict:
    return {"classes": _CLASSES[name]} if name in _CLASSES else {}


@dataclass
class Contender:
    """run(image, noise=None) -> task -> decoded map. Without noise, a contender draws its own (the engine's
    is the same every time). how: the settings used, for display."""

    name: str
    precision: str
    run: Callable[..., Mapping[str, Tensor]]
    how: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"

    def settings(self) -> AbstractContextManager:
        """Return the context for its calls."""
        return tf32(self.precision == "tf32")


def engine(model, image: Tensor, case: Case, precision: str, inplace: bool = False) -> Contender:
    """Build the dmtl engine as a contender."""
    from dmtl.engine.engine import Engine

    ours = Engine(
        model, image.device, precision=precision, steps=case.steps, tasks=case.tasks, inplace=inplace
    )
    return Contender("dmtl", precision, lambda image, noise=None: ours.maps(image).maps, "Engine")


def published(model, image: Tensor, case: Case, precision: str) -> Contender:
    """Build the published execution: eager, NCHW, one task after another."""

    def run(image: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        return Published(model, noise, case.steps).maps(image, case.tasks)

    return Contender("published", precision, run, "eager, NCHW, task by task")


def expert(model, image: Tensor, case: Case, precision: str, modes: tuple[str, ...] = MODES) -> Contender:
    """Build the expert's execution, with everything that torch offers."""
    made = Expert(model, image, case.tasks, precision=precision, steps=case.steps, modes=modes)
    return Contender("expert", precision, made.maps, made.how)


def served(device: torch.device) -> list[str]:
    """Return the precisions in which the engine predicts on a device; on a CPU bf16 only if the library uses
    the processor's instructions."""
    from dmtl.engine.engine import PRECISIONS

    names = list(PRECISIONS[device.type])
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        names.remove("bf16")
    return names


def names(device: torch.device, asked: Sequence[str] | None, config: ModelConfig) -> list[tuple[str, str]]:
    """Return (contender, precision) of all contenders: published in fp32 (and with TF32 on a GPU), the expert
    in bf16 on a GPU or in everything that a CPU supports, the engine in everything that the device supports.
    asked: precisions instead. Baselines are only included for models that they support."""
    precisions = served(device) if asked is None else list(asked)
    ours = [("dmtl", precision) for precision in precisions]
    other = config.diffusion == "none" or config.residual or config.without or config.signal_scale != 1
    if other:
        return ours
    gpu = device.type == "cuda"
    experts = ["bf16"] if gpu and asked is None else precisions
    published = ["fp32", "tf32"] if gpu else ["fp32"]
    return [*(("published", p) for p in published), *(("expert", p) for p in experts), *ours]


def make(
    name: str, model, image: Tensor, case: Case, precision: str, modes: tuple[str, ...] = MODES
) -> Contender:
    """Build the contender of this name for images like `image`.

    Args:
        model: on the device; not modified.
        modes: how the expert's code may be compiled.
    """
    if name == "dmtl":
        return engine(model, image, case, precision)
    if name == "published":
        return published(model, image, case, precision)
    return expert(model, image, case, precision, modes)


def drawn_noise(
    model: DiffusionMTL, image: Tensor, draws: int, source: CounterNoise | None = None
) -> dict[str, Tensor]:
    """Return the noise of a source (default: that of the model and the engine) as arrays
    {task: [draws, B, C, h, w]}."""
    from dmtl.ops import normal

    batch, (h, w) = image.shape[0], (side // 8 for side in pad_image(image).shape[-2:])
    arrays = {}
    for task, channels in model.channels.items():
        shape = (model.config.width if model.config.diffusion == "feature" else channels, h, w)
        keys = (source or CounterNoise(0)).draws(Pairs.of({task: None}, batch), image)
        arrays[task] = torch.stack([normal(keys(k)["key_B3"], shape, k) for k in range(draws)])
    return arrays


def difference(task: Task, found: Tensor, expected: Tensor) -> float:
    """Return the distance of a map from the expected one: the share of pixels with another class, or the
    relative distance in L2."""
    if not task.map_dtype.is_floating_point:
        return float((found != expected).float().mean())
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def worst(tasks: Mapping[str, Task], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest `difference` over all expected maps (inf if one is missing or not finite)."""
    if set(found) != set(expected):
        return float("inf")
    each = [difference(tasks[task], found[task], expected[task]) for task in expected]
    return max((x if x == x else float("inf") for x in each), default=0.0)


def checked(
    model, image: Tensor, case: Case, wanted: Sequence[tuple[str, str]], **options
) -> Iterator[tuple[Contender | None, dict]]:
    """Build every requested contender and compare it with the fp32 model; yield it with its row. Yield None,
    and the reason as "error", if it cannot be built or computes something else."""
    with torch.inference_mode(), tf32(False):
        expected = model.maps(image, case.tasks, steps=case.steps).maps
        chain = isinstance(model, DiffusionMTL)
        draws = model.mtdnet.plan(image.device, case.steps).levels if chain else []
        noise = drawn_noise(model, image, len(draws)) if chain else {}
    for name, precision in wanted:
        row = {"contender": name, "precision": precision}
        try:
            contender = make(name, model, image, case, precision, **options)
            with contender.settings(), torch.inference_mode():
                error = worst(model.tasks, contender.run(image, noise), expected)
        except RuntimeError as failure:  # out of memory, a compiler that gives up, a kernel that does not run
            reason = (str(failure).splitlines() or [""])[0]
            yield None, row | {"error": f"{type(failure).__name__}: {reason}"}
            continue
        row |= {"how": contender.how, "difference": error}
        if error <= ALLOWED[precision]:
            yield contender, row
        else:
            allowed = f"{ALLOWED[precision]:g} are allowed"
            yield None, row | {"error": f"differs from the fp32 model by {error:.2e}, {allowed}"}
