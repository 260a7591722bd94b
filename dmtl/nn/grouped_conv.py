"""3x3 convolutions of several tasks on packed rows: each task's parameters meet its own rows, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from dmtl import ops
from dmtl.nn.precision import cast, cast_all


@dataclass(frozen=True)
class GroupedConv:
    """The parameters of one layer for T tasks, as `ops.conv3x3` takes them. Folded and packed forms are for
    inference: they are computed once and keep no graph."""

    weights: list[Tensor]
    biases: list[Tensor]
    tap_biases: list[Tensor] | None = None
    packed: list[Tensor] | None = None

    @classmethod
    def of(cls, layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """One 3x3 layer for each task, ready for training."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return cls(cast_all([layer.weight for layer in layers]), cast_all(biases))

    @classmethod
    def after_1x1(cls, pointwise: Sequence[nn.Conv2d], layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """1x1 and then 3x3 with nothing between them, as one 3x3; the border is exact through the tap
        biases."""
        folded = [
            ops.fold_1x1(layer.weight, layer.bias, point.weight, point.bias)
            for point, layer in zip(pointwise, layers, strict=True)
        ]
        weights, biases, taps = (list(parts) for parts in zip(*folded, strict=True))
        return cls(cast_all(weights), cast_all(biases), cast_all(taps))

    def pack(self) -> GroupedConv:
        """With the weights transformed for the backend that serves them, so that no call has to."""
        return replace(self, packed=[ops.pack_conv3x3(weight) for weight in self.weights])

    @classmethod
    def join(cls, groups: Sequence[GroupedConv]) -> GroupedConv:
        """The tasks of several groups as one."""
        taps = [group.tap_biases for group in groups if group.tap_biases is not None]
        packed = [group.packed for group in groups if group.packed is not None]
        return cls(
            [weight for group in groups for weight in group.weights],
            [bias for group in groups for bias in group.biases],
            list(chain.from_iterable(taps)) if len(taps) == len(groups) else None,
            list(chain.from_iterable(packed)) if len(packed) == len(groups) else None,
        )

    def shifted(self, shift_K: Tensor) -> GroupedConv:
        """With a vector added to every task's bias."""
        return replace(self, biases=cast_all([(bias + shift_K).to(bias.dtype) for bias in self.biases]))

    def detached(self) -> GroupedConv:
        """Without a graph; the same memory."""

        def alone(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [x.detach() for x in tensors]

        weights, biases = ([x.detach() for x in xs] for xs in (self.weights, self.biases))
        return GroupedConv(weights, biases, alone(self.tap_biases), alone(self.packed))

    def to(self, dtype: torch.dtype, memory_format: torch.memory_format) -> GroupedConv:
        """With all parameters in this dtype and the weights in this layout, not packed."""
        taps = None if self.tap_biases is None else [taps.to(dtype) for taps in self.tap_biases]
        weights = [weight.to(dtype, memory_format=memory_format) for weight in self.weights]
        return GroupedConv(weights, [bias.to(dtype) for bias in self.biases], taps)

    def __call__(self, x: Tensor, counts: Sequence[int], *, relu: bool) -> Tensor:
        """x [R, C, h, w] with counts[t] rows of task t -> [R, K, h, w]."""
        return ops.conv3x3(
            cast(x),
            self.weights,
            self.biases,
            list(counts),
            relu=relu,
            tap_biases=self.tap_biases,
            packed=self.packed,
        )
