"""Cross-task consistency (MTPSL): a loss for the tasks of which an image has no label.

W.-H. Li, X. Liu and H. Bilen, "Learning Multiple Dense Prediction Tasks from Partially Annotated Data",
CVPR 2022, arXiv 2111.14893; code VICO-UoE/MTPSL (MIT), `Mapfns` in `model/mapfns.py`. For every image with
a label of task t and none of task s, the ordered pair (s, t) adds

    D(m_s, m_t) + a (D(m_s, f) + D(m_t, f)),      D(x, y) = mean over pixels of 1 - cos(x, y),  a = 0.5

with m_s = M(prediction of s | s, t) and m_t = M(label of t | s, t), both in one space of the pair, and f the
image's feature that all decoders read. f gets no gradient; otherwise M could map everything to one point. M
is one network for all pairs after a separate input layer for each task. After each of its convolutions, each
channel is scaled and shifted by values of the pair: a linear function of the pair's one-hot code, that is,
rows of a table. The sum over all pairs of all images, divided by the images, enters the loss with a weight,
published 2 (NYUv2, `nyu_mtl_xtc.py`) and 1 (Cityscapes, `cityscapes_mtl_xtc.py`).

Differences from the published code:

- Everything is at 1/8 of the image's resolution, f included, and M is small: an input layer, two conditioned
  layers and a 1x1 projection to the width of f. Published: 14 layers down to 1/32, the size of their
  encoder's last map.
- Published, each pair of each image goes through M separately, so batch norms normalise a single map. Here
  one call processes all pairs, and group norms make the result independent of how a batch is divided.
- Classes enter M as probabilities, not as a hard (Gumbel) sample, and their labels as the share of each class
  in 8x8 pixels; unit vectors are not shifted to 0..1. Scalars are divided by the largest magnitude of their
  map, as published.
- Pixels without a label are excluded from the means and from the labels at 1/8.
- M learns at the rate of the initial network; published, the table has its own rate (10 or 1/10 of it).
- An image with all labels has no pair; the published option for full labels pairs them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtl.data.loading.loader import Batch
from dmtl.errors import ConfigError
from dmtl.metrics import normalise
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.nn.conv3x3 import Conv3x3
from dmtl.ops.arithmetic import SHORTEST
from dmtl.tasks import Task
from dmtl.train.objective import Objective, Seen

_BLOCK = 8
"""Side of the square of pixels that one position of a map covers."""
_SMALLEST = 1e-3
"""Scalar maps with a smaller maximum are not scaled up to 1, which bounds the gradient."""
_LAYERS = 2
"""Conditioned layers of the mapping network."""


@dataclass(frozen=True)
class TaskPairs:
    """Ordered pairs (s, t) of tasks such that an image has no label of s but one of t; int64 on the CPU.

    Attributes:
        images: [N]: rows of the batch that have labelled and unlabelled tasks.
        image: [P]: the image of each pair, as an index into `images`.
        source: [P]: s of each pair, as the index of a task.
        target: [P]: t of each pair, as the index of a task.
    """

    images: Tensor
    image: Tensor
    source: Tensor
    target: Tensor

    @classmethod
    def of(cls, present: Mapping[str, Tensor]) -> TaskPairs:
        """Find the pairs from masks on the CPU, task -> bool [B]: whether an image has a label of the
        task."""
        known_BT = torch.stack(list(present.values()), 1)
        images = (known_BT.any(1) & ~known_BT.all(1)).nonzero()[:, 0]
        known_NT = known_BT[images]
        return cls(images, *(~known_NT[:, :, None] & known_NT[:, None, :]).nonzero().unbind(1))

    def __len__(self) -> int:
        return len(self.image)


class MappingNetwork(nn.Module):
    """Map predictions and labels into the joint space of each pair of tasks.

    Args:
        channels: task -> channels D of its maps.
        hidden: channels between input and output layer.
        width: channels of the joint spaces.
    """

    def __init__(self, channels: Mapping[str, int], hidden: int, width: int):
        super().__init__()
        self.inputs = nn.ModuleDict(
            {
                task: nn.Sequential(Conv3x3(d, hidden), nn.GroupNorm(math.gcd(hidden, 8), hidden), nn.ReLU())
                for task, d in channels.items()
            }
        )
        self.layers = nn.ModuleList(Conv3x3(hidden, hidden) for _ in range(_LAYERS))
        self.norms = nn.ModuleList(
            nn.GroupNorm(math.gcd(hidden, 8), hidden, affine=False) for _ in range(_LAYERS)
        )
        pairs = len(channels) * (len(channels) - 1)
        self.condition = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(pairs, _LAYERS, hidden, 1))
        self.output = nn.Conv2d(hidden, width, 1)

    def forward(
        self, maps: Mapping[str, Tensor], image: Tensor, source: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map both tasks of every pair into the pair's space; return two tensors [P, width, h, w].

        Args:
            maps: task -> [N, D, h, w], for all tasks.
            image: int64 [P], the image of each pair, 0 .. N - 1.
            source: int64 [P], index of the first task of each pair.
            target: int64 [P], index of the second task of each pair.
        """
        tasks, images = len(maps), len(next(iter(maps.values())))
        x = torch.cat([layer(maps[task]) for task, layer in self.inputs.items()])  # task by task
        rows = torch.cat([source * images + image, target * images + image])
        code = source * (tasks - 1) + target - (target > source).long()
        scale, shift = self.condition[torch.cat([code, code])][..., None, None].unbind(3)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(x))
            x = (
                x.index_select(0, rows) if i == 0 else x
            )  # before this, pairs share the results of input layers
            x = F.relu(torch.addcmul(shift[:, i].to(x.dtype), scale[:, i].to(x.dtype), x))
        return self.output(x).chunk(2)


class Consistency(Objective):
    """The loss of all pairs of a batch, including the mapping network; see the module docstring.

    Args:
        hidden: channels of the mapping network.
    """

    parts = {"consistency": 1.0, "consistency_regulariser": 0.5}
    dense = True

    def __init__(self, model: DiffusionMTL | MultiTaskBaseline, hidden: int = 64):
        super().__init__(model)
        tasks = model.tasks
        if len(tasks) < 2:
            raise ConfigError(f"optim.objectives.mtpsl needs at least two tasks, got {', '.join(tasks)}")
        self.tasks = dict(tasks)
        channels = {name: task.value_channels for name, task in tasks.items()}
        self.mapping = MappingNetwork(channels, hidden, model.config.width)

    def _pairs(self, batch: Batch) -> TaskPairs:
        return TaskPairs.of({name: batch.present[name] for name in self.tasks})

    def reaches(self, batch: Batch) -> bool:
        """Return whether the batch has a pair, so that maps of all tasks are needed."""
        return len(self._pairs(batch)) > 0

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """Return "consistency", D(m_s, m_t), and "consistency_regulariser", D(m_s, f) + D(m_t, f).

        Each is float32 [P], in the order of `TaskPairs`; without pairs the result is {}. Labels may have any
        values in rows without a label; their size is at most (8 h, 8 w). Nothing waits for the device.
        """
        present, labels, logits = seen.batch.present, seen.batch.labels, seen.logits
        feature_BChw = seen.feature
        pairs = self._pairs(seen.batch)
        if not len(pairs):
            return {}
        assert feature_BChw is not None and logits is not None  # because `dense` is True

        def sent(x: Tensor) -> Tensor:
            return x.to(feature_BChw.device, non_blocking=True)

        images = sent(pairs.images)
        maps, known = {}, []
        for name, task in self.tasks.items():
            maps[name] = predicted_map(task, logits[name][images])
            known.append(maps[name].new_zeros(len(images), 1, *maps[name].shape[2:], dtype=torch.bool))
            places = present[name][pairs.images].nonzero()[:, 0]
            if len(places):
                rows, places = sent(pairs.images[places]), sent(places)
                height, width = maps[name].shape[2:]
                label, valid = label_map(task, labels[name][rows], (height, width))
                maps[name] = maps[name].index_copy(0, places, label)
                known[-1].index_copy_(0, places, valid)
        image, source, target = sent(pairs.image), sent(pairs.source), sent(pairs.target)
        one, other = (normalise(m.float(), SHORTEST) for m in self.mapping(maps, image, source, target))
        feature = normalise(feature_BChw.detach()[images].float(), SHORTEST).index_select(0, image)
        valid = torch.cat(known).index_select(0, target * len(images) + image)
        return {
            "consistency": cosine_distance(one, other, valid),
            "consistency_regulariser": cosine_distance(one, feature, valid)
            + cosine_distance(other, feature, valid),
        }


def cosine_distance(x_PChw: Tensor, y_PChw: Tensor, valid_P1hw: Tensor) -> Tensor:
    """Return the mean cosine distance 1 - <x, y> over valid pixels, [P]; 0 without valid pixels.

    The vectors must have length 1.
    """
    distance = torch.where(valid_P1hw[:, 0], 1 - (x_PChw * y_PChw).sum(1), 0.0)
    return distance.sum((1, 2)) / valid_P1hw.sum((1, 2, 3)).clamp(min=1)


def predicted_map(task: Task, logits_BChw: Tensor) -> Tensor:
    """Convert logits to inputs of the mapping network, float32 [B, D, h, w].

    These are probabilities, unit vectors, or numbers divided by the largest magnitude of each map.
    """
    return _comparable(task, task.values(logits_BChw))


def label_map(task: Task, label_BKHW: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Convert a label to an input of the mapping network at 1/8 resolution, like `predicted_map`.

    A position is the mean over the known ones of its 8x8 pixels; 0 if none is known.

    Args:
        task: the task of the label.
        label_BKHW: the label.
        size: (h, w) of the result; positions beyond the label are unknown.

    Returns:
        The input, float32 [B, D, h, w], and where it is known, bool [B, 1, h, w].
    """
    pad = (0, _BLOCK * size[1] - label_BKHW.shape[3], 0, _BLOCK * size[0] - label_BKHW.shape[2])
    valid = task.valid(label_BKHW)
    label = torch.where(valid, label_BKHW, 0)
    valid, label = (_blocks(F.pad(x, pad), size) for x in (valid.float(), label))
    return _comparable(task, task.mean_values(label, valid)), valid.sum(-1) > 0


def _blocks(x_BKHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Split into blocks: [B, K, 8 h, 8 w] -> [B, K, h, w, 64]."""
    cut = x_BKHW.unflatten(3, (size[1], _BLOCK)).unflatten(2, (size[0], _BLOCK))
    return cut.transpose(3, 4).flatten(4)


def _comparable(task: Task, x_BKhw: Tensor) -> Tensor:
    """Divide numbers by the largest magnitude of each map; keep probabilities and unit vectors."""
    if task.label_names or task.unit_length:
        return x_BKhw
    return x_BKhw / x_BKhw.abs().amax((1, 2, 3), keepdim=True).clamp(min=_SMALLEST)
