"""Export a model as one file that runs without this package: ONNX, or PyTorch's `.pt2` as machine code or
as a graph."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmtl import __version__
from dmtl.data.loading.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from dmtl.engine.export.formats import FORMATS, LOWEST_OPSET
from dmtl.engine.export.graph import INPUTS, RESULTS, ExportNetwork, traced
from dmtl.engine.export.parity import TOLERANCE, Expected, probe
from dmtl.errors import ConfigError
from dmtl.models.initial import PAD_MULTIPLE
from dmtl.nn.precision import tf32
from dmtl.runtime.devices import pick_device
from dmtl.runtime.files import write_atomically
from dmtl.tasks import Task, chosen_tasks

__all__ = ["FORMATS", "TOLERANCE", "ExportedModel", "export_model"]


@dataclass(frozen=True)
class ExportedModel:
    """An exported file that was written and verified.

    differences: task -> largest difference between the file's output and the model's, as
    `dmtl.engine.export.parity` measures it, at most `TOLERANCE`. description: the file's metadata.
    """

    path: Path
    differences: dict[str, float]
    description: dict[str, Any]


def export_model(
    model: Any,
    path: str | os.PathLike,
    *,
    format: str = "onnx",
    size: tuple[int, int] = (512, 512),
    tasks: Sequence[str] | None = None,
    steps: int | None = None,
    eta: float | None = None,
    sampler: str | None = None,
    seed: int = 0,
    what: str = "maps",
    input: str = "float32",
    device: str | torch.device = "cpu",
    dynamic: bool = False,
    opset: int | None = None,
) -> ExportedModel:
    """Write `model` to `path`, run the file and compare it with the model; it is kept only if they agree.

    Args:
        model: `DiffusionMTL` or a baseline; not modified, exported in float32 and eval mode.
        format: "onnx" (extra `dmtl[onnx]`); "pt2", machine code for `device` (AOTInductor, needs a C++
            compiler); "program", a graph of plain PyTorch operators (`torch.export`).
        size: (H, W) of the images, in pixels; fixed in the file. The batch may have any size.
        tasks: names of the outputs, default all.
        steps: denoising steps; default: as trained.
        eta: noise of "ddim"; default: as configured in the model.
        sampler: of the chain; default: as configured in the model.
        seed: of the chain's noise, stored in the file: the same as `Predictor` uses for every image.
        what: "maps" (decoded) or "logits" [B, C, H, W] at the image's size.
        input: "float32", ImageNet-normalised; or "uint8", RGB, normalised in the file.
        device: target of "pt2" and "program"; an ONNX file has none.
        dynamic: leave height and width open, in multiples of 32 from 64 up to `size` ("onnx" and "program").
            Smaller images use the upper left part of the noise of `size`.
        opset: version of ONNX's operators; default: the exporter's.

    Raises:
        ConfigError: arguments, missing packages or compilers, a file too large for its format.
        ExportError: the file's outputs differ from the model's.
        OSError: `path` cannot be written.

    Examples:
        >>> export_model(dmtl.from_pretrained("runs/demo/diffusion"), "model.onnx", size=(480, 640))
    """
    names = chosen_tasks("export", model.tasks, tasks)
    path, size, device = _checked(path, format, size, steps, what, input, device)
    _check_openness(format, size, dynamic, opset)
    model = copy.deepcopy(model).to(device, torch.float32).eval().requires_grad_(False)
    options = dict(tasks=names, steps=steps, eta=eta, sampler=sampler)
    pixels = probe(size).to(device)
    images = pixels if input == "uint8" else normalise(pixels)
    with torch.no_grad(), tf32(False):
        expected = Expected(model, normalise(pixels), what, seed, options)
        network = ExportNetwork(model, seed, what, input, options, dynamic).eval()
        network(images[:1])  # stores the noise of this size
        about = description(model, names, expected.outputs, size, options, seed, what, input, dynamic)
        found: dict[str, float] = {}

        def write(temporary: str) -> None:
            kind = FORMATS[format]
            version = {} if opset is None else {"opset": opset}
            kind.save(traced(network, images[:2], dynamic), temporary, names, about, **version)
            run = kind.load(temporary)
            found.update(expected.differences(path, run, images))
            if dynamic:
                part = (
                    slice(None),
                    slice(None),
                    slice(size[0] - 2 * PAD_MULTIPLE),
                    slice(size[1] - PAD_MULTIPLE),
                )
                smaller = normalise(pixels[part])
                other = Expected(model, smaller, what, seed, {**options, "noise": network.noise})
                for task, difference in other.differences(path, run, images[part]).items():
                    found[task] = max(found[task], difference)

        write_atomically(path, write)
    return ExportedModel(path, found, about)


def _check_openness(format: str, size: tuple[int, int], dynamic: bool, opset: int | None) -> None:
    """Raise ConfigError for invalid `dynamic` and `opset`."""
    if opset is not None and format != "onnx":
        raise ConfigError(f"export: opset is for format onnx, got format {format}")
    if opset is not None and opset < LOWEST_OPSET:
        raise ConfigError(f"export: opset must be at least {LOWEST_OPSET}, got {opset}")
    if dynamic and format == "pt2":
        raise ConfigError(
            "export: dynamic is for formats onnx and program; machine code is made for one size"
        )
    if dynamic and any(side % PAD_MULTIPLE or side < 4 * PAD_MULTIPLE for side in size):
        raise ConfigError(
            f"export: size must be multiples of {PAD_MULTIPLE} of at least {4 * PAD_MULTIPLE} with dynamic, "
            f"got {list(size)}"
        )


def _checked(
    path: str | os.PathLike,
    format: str,
    size: tuple[int, int],
    steps: int | None,
    what: str,
    input: str,
    device: str | torch.device,
) -> tuple[Path, tuple[int, int], torch.device]:
    """Raise whatever is known to fail before any work is done."""
    for name, value, known in (
        ("format", format, FORMATS),
        ("what", what, RESULTS),
        ("input", input, INPUTS),
    ):
        if value not in known:
            raise ConfigError(f"export: {name} must be one of {', '.join(known)}, got {value!r}")
    sides = tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"export: size must be two positive numbers of pixels, H and W, got {sides}")
    if steps is not None and steps < 1:
        raise ConfigError(f"export: steps must be at least 1, got {steps}")
    path, kind = Path(path), FORMATS[format]
    if path.suffix != kind.suffix:
        raise ConfigError(f"{path}: must end in {kind.suffix} for format {format}")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a file to write")
    device = pick_device("cpu" if format == "onnx" else device)
    kind.check(device)
    return path, (sides[0], sides[1]), device


def description(
    model: Any,
    tasks: Sequence[str],
    outputs: Mapping[str, Tensor],
    size: tuple[int, int],
    options: Mapping[str, Any],
    seed: int,
    what: str,
    input: str,
    dynamic: bool = False,
) -> dict[str, Any]:
    """Return the metadata of an exported file: its input, its outputs, and the chain (None without).

    Args:
        options: steps, sampler and eta as requested for the export; None: the model's.
    """
    config = model.config
    sampler, eta = config.sampler_for(options["sampler"], options["eta"])
    denoised = config.diffusion != "none"
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    sides: list[Any] = ["height", "width"] if dynamic else list(size)
    image = {"name": "image", "dtype": input, "shape": ["batch", 3, *sides], "channels": "RGB"}
    if dynamic:
        image |= {"sides": f"multiples of {PAD_MULTIPLE} from {2 * PAD_MULTIPLE}", "largest": list(size)}
    if input == "float32":
        image |= {"meaning": "(pixel / 255 - mean) / std", "mean": mean, "std": std}
    else:
        image |= {"meaning": "pixel, 0 to 255"}
    return {
        "format": "dmtl export 1",
        "dmtl": __version__,
        "diffusion": config.diffusion,
        "steps": (options["steps"] or model.mtdnet.schedule.steps) if denoised else None,
        "sampler": sampler if denoised else None,
        "eta": eta if denoised else None,
        "seed": seed if denoised else None,
        "input": image,
        "outputs": {name: _output(model.tasks[name], outputs[name], what, sides) for name in tasks},
    }


def _output(task: Task, value: Tensor, what: str, sides: Sequence) -> dict[str, Any]:
    shape, dtype = ["batch", *value.shape[1:-2], *sides], str(value.dtype).removeprefix("torch.")
    about = {"kind": task.kind, "dtype": dtype, "shape": shape}
    about["meaning"] = "logits" if what == "logits" else task.words.map
    if not task.map_dtype.is_floating_point:
        about["classes"] = list(task.label_names)
    if what == "maps" and task.unit:
        about["unit"] = task.unit
    return about
