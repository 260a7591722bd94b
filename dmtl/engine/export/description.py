"""What an exported file says of itself: a JSON object, the same in every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dmtl import __version__
from dmtl.data.loading.transforms import IMAGENET_MEAN, IMAGENET_STD
from dmtl.tasks import Task


def description(
    model: Any,
    tasks: Sequence[str],
    outputs: Mapping[str, Tensor],
    size: tuple[int, int],
    options: Mapping[str, Any],
    seed: int,
    what: str,
    input: str,
) -> dict[str, Any]:
    """Return what goes in, what comes out, and the chain: steps, sampler, eta, seed (None if there is none).

    Args:
        options: steps, sampler and eta as the export was asked for them; None is the model's own.
    """
    config = model.config
    sampler, eta = config.sampler_for(options["sampler"], options["eta"])
    denoised = config.diffusion != "none"
    mean, std = list(IMAGENET_MEAN), list(IMAGENET_STD)
    image = {"name": "image", "dtype": input, "shape": ["batch", 3, *size], "channels": "RGB"}
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
        "outputs": {name: _output(model.tasks[name], outputs[name], what) for name in tasks},
    }


def _output(task: Task, value: Tensor, what: str) -> dict[str, Any]:
    shape, dtype = ["batch", *value.shape[1:]], str(value.dtype).removeprefix("torch.")
    about = {"kind": task.kind, "dtype": dtype, "shape": shape}
    about["meaning"] = "logits" if what == "logits" else task.words.map
    if not task.map_dtype.is_floating_point:
        about["classes"] = list(task.label_names)
    if what == "maps" and task.unit:
        about["unit"] = task.unit
    return about
