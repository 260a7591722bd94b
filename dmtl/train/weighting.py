"""Scale the weights of tasks: by 1, by learned uncertainties, or by the learning pace of each task.

A labelled (sample, task) pair with loss L adds `scale(task) * L + penalty(task)` to the total. A batch may
lack labels of some tasks, so nothing here assumes that all tasks are present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dmtl.registry import Registry


class Options(Protocol):
    """The keys of `optim` that weightings read."""

    @property
    def weighting(self) -> str: ...

    @property
    def dwa_temperature(self) -> float: ...


class Weighting(nn.Module):
    """Fixed weights, and the base class of other weightings.

    Its state dict is all that a resumed run needs.
    """

    @property
    def fixed(self) -> bool:
        """Return whether all scales are 1 and all penalties 0, so that losses need not be observed."""
        return type(self) is Weighting

    def scale(self, task: str) -> Tensor | float:
        """Return the factor on the losses of a task, a scalar."""
        return 1.0

    def penalty(self, task: str) -> Tensor | float:
        """Return the number that is added to the scaled loss of every labelled pair of a task, a scalar."""
        return 0.0

    def observe(self, task_losses: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> None:
        """Record losses of this process, without reading them on the host; non-finite ones are skipped.

        Args:
            task_losses: task -> sum of the unscaled loss over its labelled pairs, a scalar.
            counts: task -> the number of those pairs, for the tasks of `task_losses`.
        """

    def merge(self, reduce: Callable[[Tensor], object]) -> None:
        """Make the state the same in all processes; with several processes, call it before a checkpoint.

        Args:
            reduce: function that sums a tensor over all processes, in place.
        """

    def end_epoch(self, reduce: Callable[[Tensor], object]) -> None:
        """End an epoch; all processes must call it. For `reduce` see `merge`."""


class Uncertainty(Weighting):
    """Learn an uncertainty for each task.

    A task adds exp(-s) L + s, with a learned s = log variance that is initially 0 (scale 1).

    Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, arXiv 1705.07115. This is twice their regression form L / (2 sigma^2) + log sigma
    with s = log sigma^2, and the exact likelihood of an L1 loss (Laplace) with s = log b. Their
    classification form, exp(-s) L + s / 2, moves the optimum from s = log L to log 2L, so it gives such a
    task half the weight. With one form for all tasks, only `task_weights` sets their balance.

    Each task has its own parameter: if no label of the step reached it, it has no gradient and the optimiser
    skips it, with or without momentum. Shape [1], because FSDP cannot shard scalars.
    """

    def __init__(self, tasks: Iterable[str]):
        super().__init__()
        self.log_variance = nn.ParameterDict({task: nn.Parameter(torch.zeros(1)) for task in tasks})

    def scale(self, task: str) -> Tensor:
        return torch.exp(-self.log_variance[task])[0]

    def penalty(self, task: str) -> Tensor:
        return self.log_variance[task][0]


class DynamicAverage(Weighting):
    """Average weights dynamically: T softmax(r / temperature), r_t = L_t(e - 1) / L_t(e - 2).

    L_t(e) is the mean loss of task t over epoch e, and T the number of tasks.

    Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, arXiv 1803.10704. In
    the first two epochs all weights are 1. A task without a label in an epoch keeps its last mean; r is 1
    until it has two.

    Buffers: `own` float64 [2, T], sums of losses and of pairs of this process alone; `sums` float64 [2, T],
    the same over all processes, after merging; `means` float64 [2, T] of the last epoch and of the one
    before, NaN if unknown; `weights` float32 [T].
    """

    own: Tensor
    sums: Tensor
    means: Tensor
    weights: Tensor

    def __init__(self, tasks: Iterable[str], temperature: float = 2.0):
        super().__init__()
        self.tasks, self.temperature = {task: i for i, task in enumerate(tasks)}, temperature
        count = len(self.tasks)
        self.register_buffer("own", torch.zeros(2, count, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(2, count, dtype=torch.float64))
        self.register_buffer("means", torch.full((2, count), torch.nan, dtype=torch.float64))
        self.register_buffer("weights", torch.ones(count))

    def scale(self, task: str) -> Tensor:
        return self.weights[self.tasks[task]]

    @torch.no_grad()
    def observe(self, task_losses: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> None:
        for task, loss in task_losses.items():
            own = self.own[:, self.tasks[task]]
            own[0].add_(loss.nan_to_num(0.0, 0.0, 0.0))
            own[1].add_(loss.isfinite() * counts[task])

    @torch.no_grad()
    def merge(self, reduce: Callable[[Tensor], object]) -> None:
        reduce(self.own)
        self.sums += self.own
        self.own.zero_()

    @torch.no_grad()
    def end_epoch(self, reduce: Callable[[Tensor], object]) -> None:
        self.merge(reduce)
        loss, pairs = self.sums
        last, before = torch.where(pairs > 0, loss / pairs, self.means[0]), self.means[0].clone()
        ratio = torch.where(before > 0, last / before, 1.0).nan_to_num(1.0)
        self.weights.copy_(len(self.tasks) * torch.softmax(ratio / self.temperature, 0))
        self.means[0], self.means[1] = last, before
        self.sums.zero_()


WEIGHTINGS: Registry[Callable[[Iterable[str], Options], Weighting]] = Registry("weighting")
"""Value of `optim.weighting` -> function (tasks, configuration) that creates the weighting."""

WEIGHTINGS.register("fixed")(lambda tasks, config: Weighting())
WEIGHTINGS.register("uncertainty")(lambda tasks, config: Uncertainty(tasks))
WEIGHTINGS.register("dwa")(lambda tasks, config: DynamicAverage(tasks, config.dwa_temperature))


def make_weighting(config: Options, tasks: Iterable[str]) -> Weighting:
    """Create the weighting that `config.weighting` names, over these tasks."""
    return WEIGHTINGS.get(config.weighting, "optim.weighting")(tasks, config)
