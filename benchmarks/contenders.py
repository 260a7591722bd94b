"""The contenders in prediction: the engine in each precision, the baselines in PyTorch, and other runtimes.

All contenders turn an image into the same decoded maps: each is compared with the model in fp32, on images
that it has not seen and the same noise, before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmtl.errors import one_line
from dmtl.models import DiffusionMTL, ModelConfig
from dmtl.nn.precision import tf32
from dmtl.tasks import Task

from . import runtimes
from .cases import Case, Noise, drawn_noise, shared_noise
from .expert import MODES, Expert
from .published import Published

ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
"""Precision -> allowed distance of maps from the fp32 model's, see `difference`."""

BASELINES = ("published", "expert", *runtimes.NAMES)
NAMES = (*BASELINES, "dmtl")


@dataclass
class Contender:
    """run(image, noise=None) -> task -> decoded map. noise: that of `shared_noise`, for the baselines in
    PyTorch, which draw their own without; the engine and exported files always have it. how: the settings
    used, for display."""

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
    """Build the dmtl engine as a contender. It sees every image at its own size, as the others do."""
    from dmtl.engine.engine import Engine

    options = dict(precision=precision, steps=case.steps, tasks=case.tasks, downscale=1)
    ours = Engine(model, image.device, inplace=inplace, **options)
    source = shared_noise(image)
    return Contender(
        "dmtl", precision, lambda image, noise=None: ours.maps(image, noise=source).maps, "Engine"
    )


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
    in bf16 on a GPU or in everything that a CPU supports, other runtimes on a CPU in everything that they
    have, the engine in everything that the device supports. asked: precisions instead. Baselines in PyTorch
    are only included for models that they support."""
    gpu = device.type == "cuda"
    precisions = served(device) if asked is None else list(asked)
    elsewhere = ["fp32", "bf16"] if asked is None else precisions
    ours = [("dmtl", precision) for precision in precisions]
    if not gpu:
        ours = runtimes.names(elsewhere, runtimes.FROM_EXPORT) + ours
    other = config.diffusion == "none" or config.residual or config.without or config.signal_scale != 1
    if other:
        return ours
    if not gpu:
        ours = runtimes.names(elsewhere, runtimes.FROM_PUBLISHED) + ours
    experts = ["bf16"] if gpu and asked is None else precisions
    published = ["fp32", "tf32"] if gpu else ["fp32"]
    return [*(("published", p) for p in published), *(("expert", p) for p in experts), *ours]


def missing(name: str, precision: str) -> str | None:
    """Return why a contender cannot take part on this machine; None if it can."""
    return runtimes.missing(name, precision) if name in runtimes.NAMES else None


def make(
    name: str,
    model,
    image: Tensor,
    case: Case,
    precision: str,
    modes: tuple[str, ...] = MODES,
    file: str | None = None,
) -> Contender:
    """Build the contender of this name for images like `image`.

    Args:
        model: on the device; not modified. None is enough if there is a file.
        modes: how the expert's code may be compiled.
        file: for other runtimes; default: written from the model.
    """
    if name == "dmtl":
        return engine(model, image, case, precision)
    if name == "published":
        return published(model, image, case, precision)
    if name in runtimes.NAMES:
        path = runtimes.file_of(name, case, model) if file is None else Path(file)
        return Contender(name, precision, *runtimes.load(name, path, image, precision))
    return expert(model, image, case, precision, modes)


def difference(task: Task, found: Tensor, expected: Tensor) -> float:
    """Return the distance of a map from the expected one: the share of pixels with another class, or the
    relative distance in L2."""
    if not task.map_dtype.is_floating_point:
        return float((found != expected).float().mean())
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def worst(tasks: Mapping[str, Task], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest `difference` over all expected maps (inf if one is missing or not finite)."""
    return max(differences(tasks, found, expected).values(), default=0.0)


def differences(
    tasks: Mapping[str, Task], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return task -> `difference` of its map; inf if it is not finite, and for all if the tasks differ."""
    if set(found) != set(expected):
        return dict.fromkeys(expected, float("inf"))
    each = {task: difference(tasks[task], found[task], expected[task]) for task in expected}
    return {task: x if x == x else float("inf") for task, x in each.items()}


def checked(
    model, image: Tensor, case: Case, wanted: Sequence[tuple[str, str]], **options
) -> Iterator[tuple[Contender | None, dict]]:
    """Build every requested contender for images like `image`, compare it with the fp32 model on others, and
    yield it with its row. Yield None and the reason, as "skipped" if it cannot take part on this machine, as
    "error" if it cannot be built or computes something else.

    A row has the largest `difference`, those by task, and as "class_pixels" the largest one of class maps.
    """
    unseen = case.image(seed=2)
    with torch.inference_mode(), tf32(False):
        source, chain = shared_noise(unseen), isinstance(model, DiffusionMTL)
        expected = model.maps(unseen, case.tasks, steps=case.steps, noise=source).maps
        draws = model.mtdnet.plan(image.device, case.steps).levels if chain else []
        noise = drawn_noise(model, unseen, len(draws), source) if chain else {}
    for name, precision in wanted:
        row = {"contender": name, "precision": precision}
        if reason := missing(name, precision):
            yield None, row | {"skipped": reason}
            continue
        try:
            contender = make(name, model, image, case, precision, **options)
            with contender.settings(), torch.inference_mode():
                each = differences(model.tasks, contender.run(unseen, noise), expected)
        except RuntimeError as failure:  # out of memory, a compiler that gives up, a kernel that does not run
            yield None, row | {"error": f"{type(failure).__name__}: {one_line(failure)}"}
            continue
        error = max(each.values(), default=0.0)
        row |= {"how": contender.how, "difference": error, "differences": each}
        classes = [x for task, x in each.items() if not model.tasks[task].map_dtype.is_floating_point]
        row |= {"class_pixels": max(classes)} if classes else {}
        if error <= ALLOWED[precision]:
            yield contender, row
        else:
            allowed = f"{ALLOWED[precision]:g} are allowed"
            yield None, row | {"error": f"differs from the fp32 model by {error:.2e}, {allowed}"}
