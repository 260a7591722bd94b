"""What a report says, as plain data: no file, no model and no HTML is known here.

A *method* is one way of training that is compared ("MTL", "DiffusionMTL"); its name is the key in every
mapping below. The first method is the reference that the others are measured against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from dmtl.report.runs.comparison import MetricRow
from dmtl.report.runs.curves import Chart
from dmtl.report.runs.values import Value


class Labels(Protocol):
    """Which image has which label; `dmtl.data.LabelMatrix` is one."""

    ids: Sequence[str]  # N image ids
    tasks: Sequence[str]  # T task names
    matrix: np.ndarray  # bool [N, T]


class Cell(NamedTuple):
    """One picture: uint8 [H, W, 3], or None for "there is none". Shown below it, if given: a note that asks
    for attention, and what its colours reach from and to."""

    caption: str
    rgb: np.ndarray | None
    note: str = ""
    scale: str = ""


@dataclass(frozen=True)
class SampleRow:
    """The pictures of one task, in reading order: label, initial prediction, denoising steps, final."""

    task: str
    cells: Sequence[Cell | tuple]


@dataclass
class SamplePictures:
    """All pictures of one image; `image` is uint8 [H, W, 3]."""

    id: str
    image: np.ndarray
    rows: Sequence[SampleRow]
    note: str = ""


@dataclass(frozen=True)
class UncertaintyRow:
    """One task: the probability that a wrong pixel is more uncertain than a right one, what its uncertainty
    is ("entropy, nats"), and which pixels are wrong."""

    task: str
    auroc: float
    measure: str
    wrong: str


@dataclass(frozen=True)
class Uncertainty:
    """Whether `method` is unsure where it is wrong: over `images` validation images, `draws` draws of its
    noise for each."""

    method: str
    draws: int
    images: int
    rows: Sequence[UncertaintyRow]


@dataclass
class ReportData:
    """Everything on the page. Sections without data are left out.

    Attributes:
        warning: why the methods must not be compared.
        summary: `Comparison.summary`.
        order: methods, if rows that some of them lack would mention them in another order.
        delta: Delta_MTL in percent of each method against the first one.
        runs: number of runs (seeds) in every mean.
        legends: colours of a task's pictures, `{task: [(name, (r, g, b)), ...]}`.
    """

    title: str
    subtitle: str = ""
    warning: str = ""
    facts: Sequence[tuple[str, object]] = ()
    summary: Sequence[Mapping[str, str]] = ()
    label_matrix: Labels | None = None
    metrics: Sequence[MetricRow] = ()
    order: Sequence[str] = ()
    delta: Mapping[str, Value] = field(default_factory=dict)
    runs: int = 1
    curves: Sequence[Chart] = ()
    uncertainty: Uncertainty | None = None
    samples: Sequence[SamplePictures] = ()
    legends: Mapping[str, Sequence[tuple[str, tuple[int, int, int]]]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def compared(self) -> list[str]:
        """Methods that are set against the reference: those with a Delta."""
        return [name for name in self.methods()[1:] if name in self.delta]

    def methods(self) -> list[str]:
        """Names of the methods in their `order`, then as the metric rows mention them; the first is the
        reference."""
        return list(dict.fromkeys([*self.order, *(name for row in self.metrics for name in row.values)]))
