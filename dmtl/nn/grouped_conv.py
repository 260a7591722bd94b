"""3x3 convolutions of several tasks on packed rows: each task's parameters meet its own rows, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        return cls(cast_all([layer.weight for layer in layers]), cast_all([layer.bias for layer in layers]))

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
        packed = [ops.pack_conv3x3(weight) for weight in self.weights]
        return GroupedConv(self.weights, self.biases, self.tap_biases, packed)

    def __call__(
        self, x: Tensor, counts: Sequence[int], *, relu: bool, shift: Tensor | None = None
    ) -> Tensor:
        """x [R, C, h, w] with counts[t] rows of task t -> [R, K, h, w]. shift [K] is added to every
        bias."""
        biases = self.biases if shift is None else cast_all([bias + shift for bias in self.biases])
        options = dict(relu=relu, tap_biases=self.tap_biases, packed=self.packed)
        return ops.conv3x3(cast(x), self.weights, biases, list(counts), **options)
