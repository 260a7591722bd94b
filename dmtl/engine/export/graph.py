"""The network of an exported file, and its graph of only plain PyTorch operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dmtl import ops
from dmtl.data.loading.transforms import normalise
from dmtl.diffusion import CounterNoise, Pairs
from dmtl.diffusion.noise import Draws
from dmtl.diffusion.pairs import concat
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.models.initial import PAD_MULTIPLE

RESULTS = ("maps", "logits")
INPUTS = ("float32", "uint8")


class SharedNoise(nn.Module):
    """Stored noise of `CounterNoise` for sample 0, shared by all images of a batch.

    The draws that a first call outside any tracing requests are stored. They fit images of its size; smaller
    images use their upper left part.
    """

    def __init__(self, seed: int, dynamic: bool = False):
        super().__init__()
        self.dynamic = dynamic
        self.source = CounterNoise(seed, torch.zeros(1, dtype=torch.int64))

    def draws(self, pairs: Pairs, x: Tensor) -> Draws:
        """Return one array [1, C, h, w] for each task, repeated for its rows."""

        def draw(number: int) -> dict:
            parts = [
                self._stored(task, number, x).expand(count, -1, -1, -1)
                for task, count in zip(pairs.tasks, pairs.counts, strict=True)
            ]
            return {"noise": concat(parts)}

        return draw

    def _stored(self, task: str, number: int, x: Tensor) -> Tensor:
        name = f"{task}_{number}"
        height, width = x.shape[2:]
        if not hasattr(self, name):
            key = self.source.draws(Pairs((task,), (None,), (1,)), x)(number)
            noise = ops.normal(key["key_B3"], tuple(x.shape[1:]), step=key["step"])
            # a slice that is never the whole: else a graph would fix the choice for all sizes
            self.register_buffer(name, F.pad(noise, (0, 1, 0, 1)) if self.dynamic else noise)
        return getattr(self, name)[..., :height, :width]


class ExportNetwork(nn.Module):
    """Images -> {task: map or logits}, without other inputs.

    options: tasks, steps, eta and sampler of `model.maps` and `model.forward`.
    """

    def __init__(
        self,
        model: DiffusionMTL | MultiTaskBaseline,
        seed: int,
        what: str,
        input: str,
        options: Mapping[str, Any],
        dynamic: bool = False,
    ):
        super().__init__()
        self.model, self.noise = model, SharedNoise(seed, dynamic)
        self.what, self.input, self.options = what, input, options

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: [B, 3, H, W], float32 or uint8 as `input` says."""
        image = normalise(image) if self.input == "uint8" else image
        return outputs(self.model, image, self.what, noise=self.noise, **self.options)


def outputs(
    model: DiffusionMTL | MultiTaskBaseline, image: Tensor, what: str, **options: Any
) -> dict[str, Tensor]:
    """Return the model's maps, or its final logits at the image's size."""
    found = model.maps(image, **options).maps if what == "maps" else model(image, **options).final
    return {task: found[task] for task in options["tasks"]}


def traced(network: ExportNetwork, images: Tensor, dynamic: bool = False) -> ExportedProgram:
    """Trace the network's graph for any batch size, with our operators replaced by their references.

    Args:
        images: at least two, because a dimension of size 1 would become a constant.
        dynamic: leave height and width open, from 64 up to those of the images, in multiples of 32.
    """
    sides: dict[int, Any] = {0: Dim("batch")}
    if dynamic:
        for place, name in ((2, "height"), (3, "width")):
            sides[place] = PAD_MULTIPLE * Dim(name, min=2, max=images.shape[place] // PAD_MULTIPLE)
        # equal sides, or the largest ones, would be taken as a constraint
        images = images[
            ..., : images.shape[2] - PAD_MULTIPLE, : images.shape[3] - 2 * PAD_MULTIPLE
        ].contiguous()
    with ops.references():
        return torch.export.export(network, (images,), dynamic_shapes=(sides,))
