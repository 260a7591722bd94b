"""Compute the loss of partially labelled batches (DiffusionMTL, arXiv 2403.15389).

A sample b with labels of n_b of the T tasks contributes

    (T / n_b) sum_t w_t ( L_t(final) + a L_t(initial) ) / B,      a = 0.5 as published

over its labelled tasks t. A sample without any label contributes nothing. A weighting strategy replaces
L = L_t(final) + a L_t(initial) by s_t L + p_t (`dmtl.train.weighting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor

from dmtl.models import Prediction
from dmtl.models.initial import factor_of
from dmtl.tasks import Task
from dmtl.train.weighting import Weighting


@dataclass(frozen=True)
class PairLosses:
    """Unweighted losses of the labelled (sample, task) pairs.

    Attributes:
        final: task -> float32 [n], rows in the order of the batch.
        initial: the same for the initial predictions; empty for a baseline.
        added: the losses of the run's objectives.
    """

    final: dict[str, Tensor]
    initial: dict[str, Tensor]
    added: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, images: int) -> dict[str, Tensor]:
        """Return "<task>" and "initial/<task>" -> sum over labelled samples divided by `images`, detached."""
        named = {**self.final, **{f"initial/{task}": losses for task, losses in self.initial.items()}}
        if not named:
            return {}
        sums = torch.stack([losses.detach().sum() for losses in named.values()]) / images
        return dict(zip(named, sums.unbind(), strict=True))

    @classmethod
    def concat(cls, several: Sequence[PairLosses]) -> PairLosses:
        """Join the losses of the parts of a batch, in order."""
        if len(several) == 1:
            return several[0]

        def along(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            tasks = dict.fromkeys(task for part in parts for task in part)
            return {task: torch.cat([part[task] for part in parts if task in part]) for task in tasks}

        return cls(*(along([getattr(part, kind.name) for part in several]) for kind in fields(cls)))

    def detached(self) -> PairLosses:
        """Return these losses, detached from the graph."""
        return PairLosses(*({t: loss.detach() for t, loss in kind.items()} for kind in vars(self).values()))


def labelled_rows(present: Mapping[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return task -> rows that have its label, int64 on `device`, from masks [B] on the CPU.

    The copy to the device does not wait for it.
    """
    return {task: mask.nonzero()[:, 0].to(device, non_blocking=True) for task, mask in present.items()}


def sample_scale(present: Mapping[str, Tensor]) -> Tensor:
    """Return T / n_b for every sample, float32 [B] on the CPU; 0 if a sample has no label."""
    counts = torch.stack(list(present.values())).sum(0)
    return torch.where(counts > 0, len(present) / counts.clamp(min=1), 0.0).float()


def pair_losses(
    prediction: Prediction,
    labels: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    tasks: Mapping[str, Task],
    *,
    final: bool = True,
    upsampled: bool = True,
) -> PairLosses:
    """Compute the losses of all labelled pairs, in float32 for any precision of the model.

    `partial_label_loss` describes the other arguments.

    Args:
        rows: task -> int64 rows of the batch that have its label, on the labels' device.
        upsampled: False if the logits of the prediction are at 1/8 or 1/4 resolution.
    """
    last, initial = {}, {}
    for name, logits in prediction.final.items():
        label = labels[name][rows[name]]
        loss = tasks[name].loss if upsampled else partial(_loss_of_map, tasks[name])
        last[name] = loss(logits, label)
        if final:
            initial[name] = loss(prediction.initial[name], label)
    return PairLosses(last, initial)


def _loss_of_map(task: Task, logits: Tensor, label: Tensor) -> Tensor:
    return task.loss_of_map(logits, label, factor_of(logits, label.shape[-2]))


def weighted_sum(
    losses: PairLosses,
    present: Mapping[str, Tensor],
    tasks: Mapping[str, Task],
    *,
    initial_weight: float = 0.5,
    images: int | None = None,
    weighting: Weighting | None = None,
) -> Tensor | None:
    """Return the scalar to differentiate; None if no pair is labelled.

    `partial_label_loss` describes the other arguments.

    Args:
        losses: the losses of the pairs.
        images: number of images B in the whole step; None: `present` has all of them.
        weighting: factors on the weights of the tasks; None: none.
    """
    if not losses.final:
        return None
    images = len(next(iter(present.values()))) if images is None else images
    weight_T = torch.tensor([tasks[name].weight / images for name in losses.final])
    factor_TB = weight_T[:, None] * sample_scale(present)
    factor_R = factor_TB[torch.stack([present[name] for name in losses.final])]
    loss_R = torch.cat(list(losses.final.values()))
    if losses.initial:
        loss_R = loss_R + initial_weight * torch.cat([losses.initial[name] for name in losses.final])
    if weighting is not None and not weighting.fixed:
        parts = loss_R.split([len(loss) for loss in losses.final.values()])
        loss_R = torch.cat(
            [
                weighting.scale(name) * part + weighting.penalty(name)
                for name, part in zip(losses.final, parts, strict=True)
            ]
        )
    return (factor_R.to(loss_R.device, non_blocking=True) * loss_R).sum()


def partial_label_loss(
    prediction: Prediction,
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    tasks: Mapping[str, Task],
    *,
    initial_weight: float = 0.5,
    final: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch and its parts.

    Args:
        prediction: the result of `model(image, labelled=labelled_rows(present))`: the rows of each task are
            in the order of the batch.
        labels: task -> [B, K, H, W], with any values in rows without a label.
        present: task -> bool [B] on the CPU, for every task of the model.
        tasks: the tasks of the model by name.
        initial_weight: weight a of the initial network's losses.
        final: False for a baseline, whose initial predictions are its final ones.

    Returns:
        The total loss, a scalar to differentiate; and its parts "<task>" and "initial/<task>", detached
        scalars on the device: the sum of the unweighted loss over labelled samples, divided by B.

    Raises:
        ValueError: no pair is labelled.
    """
    device = next((label.device for label in labels.values()), "cpu")
    losses = pair_losses(prediction, labels, labelled_rows(present, device), tasks, final=final)
    total = weighted_sum(losses, present, tasks, initial_weight=initial_weight)
    if total is None:
        raise ValueError("partial_label_loss: prediction must hold at least one labelled task, got none")
    return total, losses.parts(len(next(iter(present.values()))))
