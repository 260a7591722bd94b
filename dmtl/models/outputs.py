"""The results of a model: logits, or decoded maps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Logits at the image's size [H, W]; with `upsampled=False`, at 1/8 (final ones at 1/`output_stride`) of
    the padded image's size.

    Attributes:
        final: task -> logits [n, C_T, H, W]; n is B, or the number of labelled rows if `labelled` was passed.
        initial: logits of the initial network for the same tasks and rows.
        trace: task -> list of logits [n, C_T, H, W] after every denoising step, the noisiest first; empty
            unless requested.
    """

    final: dict[str, Tensor]
    initial: dict[str, Tensor]
    trace: dict[str, list[Tensor]]

    def stages(self, task: str) -> list[tuple[str, Tensor]]:
        """Return (caption, logits) of a task in the order of the chain; without a trace only the final
        ones."""
        trace = self.trace.get(task, [])
        if not trace:
            return [("final map", self.final[task])]
        # The last step of the chain is the final prediction, so it is shown only once.
        steps = [(f"step {k}", logits) for k, logits in enumerate(trace[:-1], 1)]
        final = (f"step {len(trace)}, final", self.final[task])
        return [("initial map", self.initial[task]), *steps, final]


torch.export.register_dataclass(Prediction, serialized_type_name="dmtl.models.Prediction")


@dataclass(frozen=True)
class Maps:
    """Decoded maps at the image's size.

    Attributes:
        maps: task -> the result of `task.decode`, [B, H, W] or [B, 3, H, W].
        finite: task -> bool scalar on the device: whether all decoded logits are finite, which class ids
            would not show.
        uncertainty: task -> float32 [B, H, W], if several noise samples were averaged (`dmtl.Engine`);
            otherwise empty.
        steps: number of denoising steps that an engine made; None for a model.
    """

    maps: dict[str, Tensor]
    finite: dict[str, Tensor]
    uncertainty: dict[str, Tensor] = field(default_factory=dict)
    steps: int | None = None
