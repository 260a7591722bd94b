"""Who is compared in prediction: the engine in each precision, and the two baselines.

A contender takes an image to decoded maps, all of them the same maps: each is compared with the model in
fp32, on the same noise, before anybody times it.
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
"""Precision -> how far maps may lie from the fp32 model's, see `difference`."""

NAMES = ("published", "expert", "dmtl")
_CLASSES = {"semseg": 21, "human_parts": 7}
PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
SIX = (*PASCAL, "depth")


@dataclass(frozen=True)
class Case:
    """One prediction. `model`: the folder of a trained model, or None for random weights in the shape of
    `options` (`ModelConfig`'s fields; the published network where empty). JSON-able by
    `dataclasses.asdict`."""

    size: tuple[int, int] = (512, 512)
    batch: int = 1
    steps: int | None = None
    tasks: tuple[str, ...] | None = None
    device: str = "cpu"
    model: str | None = None
    options: dict = field(default_factory=dict)
    all_tasks: tuple[str, ...] = PASCAL

    def build(self) -> torch.nn.Module:
        """The model on the CPU, in eval mode."""
        if self.model is not None:
            return from_pretrained(self.model)
        specs = [task.spec() for task in tasks_of(self)]
        torch.manual_seed(0)
        return create_model(ModelConfig(tasks=specs, **self.options)).eval()

    def image(self) -> Tensor:
        """Standard normal pixels [B, 3, H, W] on the device."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, 3, *self.size, generator=generator).to(self.device)

    def but(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)


def case_from(values: Mapping) -> Case:
    """The case that `dataclasses.asdict` and JSON made this of."""
    return Case(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def tasks_of(case: Case) -> list[Task]:
    """The tasks of a model with random weights."""
    return [make_task(name, **_task_options(name)) for name in case.all_tasks]


def _task_options(name: str) -> dict:
    return {"classes": _CLASSES[name]} if name in _CLASSES else {}


@dataclass
class Contender:
    """run(image, noise=None) -> task -> decoded map; noise that is not given is drawn (the engine's own is
    the same every time and needs none). how: what was switched on, for people."""

    name: str
    precision: str
    run: Callable[..., Mapping[str, Tensor]]
    how: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"

    def settings(self) -> AbstractContextManager:
        """What has to be set around its calls."""
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
    """Build the expert's execution: everything switched on that torch offers."""
    made = Expert(model, image, case.tasks, precision=precision, steps=case.steps, modes=modes)
    return Contender("expert", precision, made.maps, made.how)


def served(device: torch.device) -> list[str]:
    """The precisions in which the engine predicts on a device; on a CPU bf16 only where the library uses the
    processor's own."""
    from dmtl.engine.engine import PRECISIONS

    names = list(PRECISIONS[device.type])
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        names.remove("bf16")
    return names


def names(device: torch.device, asked: Sequence[str] | None, config: ModelConfig) -> list[tuple[str, str]]:
    """(contender, precision) of all who take part: published in fp32 (and with TF32 on a GPU), the expert in
    what a GPU's expert would take (bf16) or in all that a CPU serves, the engine in all that the device
    serves. asked: precisions instead. Baselines only for models that they compute."""
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
        model: on the device; it stays as it is.
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
    """The noise of a source (default: what the model and the engine draw by default), as arrays
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
    """How far a map lies from the expected one: the share of pixels of another class, or the relative
    distance in L2."""
    if not task.map_dtype.is_floating_point:
        return float((found != expected).float().mean())
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def worst(tasks: Mapping[str, Task], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest `difference` over all expected maps (inf where one is missing or not finite)."""
    if set(found) != set(expected):
        return float("inf")
    each = [difference(tasks[task], found[task], expected[task]) for task in expected]
    return max((x if x == x else float("inf") for x in each), default=0.0)


def checked(
    model, image: Tensor, case: Case, wanted: Sequence[tuple[str, str]], **options
) -> Iterator[tuple[Contender | None, dict]]:
    """Every wanted contender, made and compared with the fp32 model; with what is known of it. None instead
    of one that cannot be made or computes something else, and the reason as "error"."""
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
