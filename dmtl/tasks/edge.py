"""Boundaries: binary cross-entropy in which the few positives carry most of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dmtl import metrics
from dmtl.tasks.binary import Binary, weighted_bce
from dmtl.tasks.palette import INK


@dataclass(frozen=True, kw_only=True)
class Edge(Binary):
    """Is a pixel on the boundary of something.

    Published loss, mean over valid pixels: -(b y log p + (1 - b) (1 - y) log(1 - p)), b = `balance` = 0.95.
    """

    name: str = "edge"
    weight: float = 50.0
    balance: float = 0.95
    thin: bool = True

    scale = INK

    def __post_init__(self):
        super().__post_init__()
        self._number("balance", low=0.0, high=1.0)

    def _pixel_loss(self, logits_BCHW: Tensor, label_BKHW: Tensor, valid_B1HW: Tensor) -> Tensor:
        return weighted_bce(logits_BCHW, label_BKHW > 0.5, self.balance, 1 - self.balance)

    def _loss_kind(self) -> dict[str, Any]:
        return {"kind": "logistic", "positive_weight": self.balance, "negative_weight": 1 - self.balance}

    def new_metric(self, **options: Any) -> metrics.Edge:
        """`dmtl.metrics.Edge`: pixelF (best F of pixels over thresholds, percent) and losses."""
        return metrics.Edge(ignore=self.ignore, balance=self.balance, **options)
