"""3x3 convolutions of several tasks with their own parameters, computed in one call on packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from dmtl import ops
from dmtl.nn.precision import cast, cast_all


@dataclass  # not frozen: torch.compile of torch 2.11 cannot create frozen ones
class GroupedConv:
    """The parameters of one layer for T tasks, as `ops.conv3x3` expects them.

    Folded and packed forms are only for inference: they are computed once, without an autograd graph.

    Attributes:
        weights: weight of each task, [K, C, 3, 3].
        biases: bias of each task, [K].
        tap_biases: bias of each tap of each task; None if no 1x1 was folded in.
        packed: weights transformed for their backend; None if they are not.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    tap_biases: list[Tensor] | None = None
    packed: list[Tensor] | None = None

    @classmethod
    def of(cls, layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """Group one 3x3 layer per task; the result can be trained."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        return cls(cast_all([layer.weight for layer in layers]), cast_all(biases))

    @classmethod
    def after_1x1(cls, pointwise: Sequence[nn.Conv2d], layers: Sequence[nn.Conv2d]) -> GroupedConv:
        """Fold a 1x1 and the 3x3 right after it into one 3x3; tap biases make it exact at the border, too."""
        folded = [
            ops.fold_1x1(layer.weight, layer.bias, point.weight, point.bias)
            for point, layer in zip(pointwise, layers, strict=True)
        ]
        weights, biases, taps = (list(parts) for parts in zip(*folded, strict=True))
        return cls(cast_all(weights), cast_all(biases), cast_all(taps))

    def pack(self) -> GroupedConv:
        """Return a group whose weights are already transformed for their backend, so that calls need not do
        it."""
        return replace(self, packed=[ops.pack_conv3x3(weight) for weight in self.weights])

    @classmethod
    def join(cls, groups: Sequence[GroupedConv]) -> GroupedConv:
        """Join the tasks of several groups into one group."""
        taps = [group.tap_biases for group in groups if group.tap_biases is not None]
        packed = [group.packed for group in groups if group.packed is not None]
        return cls(
            [weight for group in groups for weight in group.weights],
            [bias for group in groups for bias in group.biases],
            list(chain.from_iterable(taps)) if len(taps) == len(groups) else None,
            list(chain.from_iterable(packed)) if len(packed) == len(groups) else None,
        )

    def shifted(self, shift_K: Tensor) -> GroupedConv:
        """Return a group with a vector [K] added to the bias of every task."""
        return replace(self, biases=cast_all([(bias + shift_K).to(bias.dtype) for bias in self.biases]))

    def detached(self) -> GroupedConv:
        """Return a group that shares its memory but is detached from the autograd graph."""

        def alone(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [x.detach() for x in tensors]

        weights, biases = ([x.detach() for x in xs] for xs in (self.weights, self.biases))
        return GroupedConv(weights, biases, alone(self.tap_biases), alone(self.packed))

    def to(self, dtype: torch.dtype, memory_format: torch.memory_format) -> GroupedConv:
        """Return a group with all parameters in this dtype and weights in this layout; it is not packed."""
        taps = None if self.tap_biases is None else [taps.to(dtype) for taps in self.tap_biases]
        weights = [weight.to(dtype, memory_format=memory_format) for weight in self.weights]
        return GroupedConv(weights, [bias.to(dtype) for bias in self.biases], taps)

    def __call__(
        self, x: Tensor, counts: Sequence[int], *, relu: bool, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve x [R, C, h, w], of which counts[t] rows belong to task t; return [R, K, h, w].

        `ops.conv3x3` describes `relu` and `residual`.
        """
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
