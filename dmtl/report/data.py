"""What a report says, as plain data: no file, no model and no HTML is known here.

A *method* is one way of training that is compared ("MTL", "DiffusionMTL"); its name is the key in every
mapping below. The first method is the reference that the others are measured against.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

Value = float | tuple[float, float]  # a figure, or its mean and standard deviation over several runs


class Labels(Protocol):
    """Which image has which label; `dmtl.data.LabelMatrix` is one."""

    ids: Sequence[str]  # N image ids
    tasks: Sequence[str]  # T task names
    matrix: np.ndarray  # bool [N, T]


@dataclass(frozen=True)
class MetricRow:
    """One metric of one task, for every method.

    `primary` says that the metric enters Delta_MTL; `unit` ("%", "m", "deg") may be empty.
    """

    task: str
    metric: str
    unit: str
    higher_is_better: bool
    values: Mapping[str, Value]
    primary: bool = True


@dataclass(frozen=True)
class Chart:
    """A line chart. `series` maps a name to (x values, y values); points that are not finite are left out.
    `bands` maps names of series to what lies around their line: (x values, lower and upper y values)."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] = field(
        default_factory=dict
    )


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

    order: methods, where rows that some of them lack would mention them in another order.
    delta: Delta_MTL in percent of each method against the first one; `runs` is the number of runs (seeds)
    behind every mean.
    legends: colours of a task's pictures, `{task: [(name, (r, g, b)), ...]}`.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, object]] = ()
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


def value_of(values: Sequence[float]) -> Value:
    """Mean and sample standard deviation over runs; of one run its figure; NaN where one is not finite."""
    if not np.isfinite(values).all():
        return float("nan")
    return values[0] if len(values) == 1 else (statistics.fmean(values), statistics.stdev(values))


def mean_of(value: Value) -> float:
    """The figure itself, or its mean over runs."""
    return float(value[0] if isinstance(value, (tuple, list)) else value)


def spread_of(value: Value) -> float | None:
    """Standard deviation over runs, or None where there was one run."""
    return float(value[1]) if isinstance(value, (tuple, list)) else None


def relative_gain(row: MetricRow, method: str, reference: str) -> float | None:
    """Improvement of `method` over `reference` in percent of the reference;

    positive is better, whatever the metric's direction.
    """
    if method not in row.values or reference not in row.values:
        return None
    ours, theirs = mean_of(row.values[method]), mean_of(row.values[reference])
    if not (np.isfinite(ours) and np.isfinite(theirs)) or theirs == 0:
        return None
    return (100.0 if row.higher_is_better else -100.0) * (ours - theirs) / theirs
