"""Compute the 1x1 heads of several tasks as one batched product, and check all their logits at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Logits(dict[str, Tensor]):
    """A dictionary: task -> logits [B, C_T, h, w].

    `joint` is the tensor [T, B h w, K] of which they are views, or None. Its other elements are zero, or NaN
    for pixels whose features are not finite.
    """

    joint: Tensor | None = None


class Heads:
    """The heads of tasks whose maps are packed in one tensor; their weights are padded to equal channels.

    Args:
        heads: task -> 1x1 convolution of C channels.
    """

    def __init__(self, heads: Mapping[str, nn.Conv2d]):
        self.channels = {task: head.out_channels for task, head in heads.items()}
        first, most = next(iter(heads.values())).weight, max(self.channels.values())
        self.weight_TCK = first.new_zeros(len(heads), first.shape[1], most)
        self.bias_T1K = first.new_zeros(len(heads), 1, most)
        for number, head in enumerate(heads.values()):
            self.weight_TCK[number, :, : head.out_channels] = head.weight.flatten(1).T
            if head.bias is not None:
                self.bias_T1K[number, 0, : head.out_channels] = head.bias

    def __call__(self, x: Tensor) -> Logits:
        """Compute logits, as views, from the packed maps of all tasks [T B, C, h, w], B rows for each."""
        rows, _, h, w = x.shape
        tasks, channels, most = self.weight_TCK.shape
        pixels = x.to(self.weight_TCK.dtype).permute(0, 2, 3, 1).reshape(tasks, -1, channels)
        joint = torch.baddbmm(self.bias_T1K, pixels, self.weight_TCK)
        maps = joint.view(tasks, rows // tasks, h, w, most).permute(0, 1, 4, 2, 3)
        logits = Logits((t, m[:, :c]) for (t, c), m in zip(self.channels.items(), maps, strict=True))
        logits.joint = joint
        return logits


def finite(draws: Sequence[Mapping[str, Tensor]], tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return task -> bool scalar: whether its logits are finite in all noise samples."""
    peaks = [_peaks(draw, tasks) for draw in draws]
    most = peaks[0] if len(peaks) == 1 else torch.stack(peaks).amax(0)  # NaN if any logit is NaN
    return dict(zip(tasks, (most < torch.inf).unbind(), strict=True))


def _peaks(logits: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    """Return the largest absolute value of each task's logits."""
    joint = logits.joint if isinstance(logits, Logits) and tuple(logits) == tuple(tasks) else None
    if joint is not None:
        return torch.linalg.vector_norm(joint.flatten(1), torch.inf, dim=1)
    return torch.stack([torch.linalg.vector_norm(logits[task], torch.inf) for task in tasks])
