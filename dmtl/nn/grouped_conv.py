"""3x3 convolutions of several tasks on packed rows: parameters by task, in one call."""

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
    """The parameters of one layer for T tasks, as `ops.conv3x3` expects them. Folded and packed forms are for
    inference: they are computed once, without a graph."""

    weights: list[Tensor]
    biases: list[Tensor]
    tap_biases: list[Tensor] | None = None
    packed: list[Tensor] | None = None

    @classmethod
    def of(cls, layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """Group one 3x3 layer per task, ready for training."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return cls(cast_all([layer.weight for layer in layers]), cast_all(biases))

    @classmethod
    def after_1x1(cls, pointwise: Sequence[nn.Conv2d], layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """Fold a 1x1 and the 3x3 right after it into one 3x3; the tap biases make the border exact."""
        folded = [
            ops.fold_1x1(layer.weight, layer.bias, point.weight, point.bias)
            for point, layer in zip(pointwise, layers, strict=True)
        ]
        weights, biases, taps = (list(parts) for parts in zip(*folded, strict=True))
        return cls(cast_all(weights), cast_all(biases), cast_all(taps))

    def pack(self) -> GroupedConv:
        """Transform the weights for their backend in advance, so that no call has to."""
        return replace(self, packed=[ops.pack_conv3x3(weight) for weight in self.weights])

    @classmethod
    def join(cls, groups: Sequence[GroupedConv]) -> GroupedConv:
        """Join the tasks of several groups into one."""
        taps = [group.tap_biases for group in groups if group.tap_biases is not None]
        packed = [group.packed for group in groups if group.packed is not None]
        return cls(
            [weight for group in groups for weight in group.weights],
            [bias for group in groups for bias in group.biases],
            list(chain.from_iterable(taps)) if len(taps) == len(groups) else None,
            list(chain.from_iterable(packed)) if len(packed) == len(groups) else None,
        )

    def shifted(self, shift_K: Tensor) -> GroupedConv:
        """Add a vector to every task's bias."""
        return replace(self, biases=cast_all([(bias + shift_K).to(bias.dtype) for bias in self.biases]))

    def detached(self) -> GroupedConv:
        """Detach from the graph, sharing memory."""

        def alone(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [x.detach() for x in tensors]

        weights, biases = ([x.detach() for x in xs] for xs in (self.weights, self.biases))
        return GroupedConv(weights, biases, alone(self.tap_biases), alone(self.packed))

    def to(self, dtype: torch.dtype, memory_format: torch.memory_format) -> GroupedConv:
        """Convert all parameters to this dtype and the weights to this layout, not packed."""
        taps = None if self.tap_biases is None else [taps.to(dtype) for taps in self.tap_biases]
        weights = [weight.to(dtype, memory_format=memory_format) for weight in self.weights]
        return GroupedConv(weights, [bias.to(dtype) for bias in self.biases], taps)

    def __call__(
        self, x: Tensor, counts: Sequence[int], *, relu: bool, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve x [R, C, h, w] with counts[t] rows of task t -> [R, K, h, w]; residual as in
        `ops.conv3x3`."""
        return ops.conv3x3(
            cast(x),
            self.weights,
            self.biases,
            list(counts),
            relu=relu,
            tap_biases=self.tap_biases,
            packed=self.packed,
            residual=residual,
        )
