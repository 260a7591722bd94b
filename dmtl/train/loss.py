"""The loss of partially labelled batches (DiffusionMTL, arXiv 2403.15389).

A sample b with n_b of the T tasks labelled contributes

    (T / n_b) sum_t w_t ( L_t(final) + a L_t(initial) ) / B,      a = 0.5 as published

over its labelled tasks t. A sample without any label contributes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmtl.models import Prediction
from dmtl.tasks import Task


def labelled_rows(present: Mapping[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """task -> int64 rows that have its label, from CPU masks [B]; the copy to the device does not wait for
    it."""
    return {task: mask.nonzero()[:, 0].to(device, non_blocking=True) for task, mask in present.items()}


def sample_scale(present: Mapping[str, Tensor]) -> Tensor:
    """T / n_b for every sample, float32 [B] on the CPU; 0 where a sample has no label."""
    counts = torch.stack([mask for mask in present.values()]).sum(0)
    return torch.where(counts > 0, len(present) / counts.clamp(min=1), 0.0).float()


def partial_label_loss(
    prediction: Prediction,
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    tasks: Mapping[str, Task],
    *,
    initial_weight: float = 0.5,
    final: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss (scalar, to differentiate) and its parts (detached scalars, nothing is copied to the host).

    Args:
        prediction: of `model(image, labelled=labelled_rows(present))`: rows of each task in the order of
        the batch.
        labels: task -> [B, K, H, W], whatever stands in the rows without a label.
        present: task -> bool [B] on the CPU, for every task of the model.
        initial_weight: weight a of the initial network's losses.
        final: False for a baseline, whose initial predictions are its final ones.

    Returns:
        parts: "<task>" and "initial/<task>": sum over labelled samples of the unweighted loss, over B.
    """
    batch = len(next(iter(present.values())))
    scale = sample_scale(present)
    total, parts = None, {}
    for name, logits in prediction.final.items():
        task = tasks[name]
        rows = present[name].nonzero()[:, 0]
        factor = (scale[rows] * (task.weight / batch)).to(logits.device, non_blocking=True)
        label = labels[name][rows.to(labels[name].device, non_blocking=True)]
        weighted = task.loss(logits, label)
        parts[name] = weighted.detach().sum() / batch
        if final:
            initial = task.loss(prediction.initial[name], label)
            parts[f"initial/{name}"] = initial.detach().sum() / batch
            weighted = weighted + initial_weight * initial
        contribution = (factor * weighted).sum()
        total = contribution if total is None else total + contribution
    if total is None:
        raise ValueError("partial_label_loss: prediction must hold at least one labelled task, got none")
    return total, parts
