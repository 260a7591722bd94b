"""The content of a report as plain data, and the page that shows it.

A *method* is one way of training ("MTL", "DiffusionMTL"). Its name is the key in every mapping below. The
first method is the reference with which the others are compared.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmtl.data import LabelMatrix
from dmtl.report.html.charts import COLOURS, chart_svg
from dmtl.report.html.images import label_section
from dmtl.report.html.template import page
from dmtl.report.runs.comparison import MetricRow
from dmtl.report.runs.curves import Chart
from dmtl.report.runs.values import Value, mean_of, spread_of, tone_of
from dmtl.runtime.files import write_text
from dmtl.text import plural

MOST_PANELS = 2  # maximum number of methods with a headline; others are only in the table


class Cell(NamedTuple):
    """One picture with its caption.

    Attributes:
        caption: text below the picture.
        rgb: uint8 [H, W, 3]; None if there is no picture.
        note: a highlighted remark.
        scale: the range of values that the colours show.
    """

    caption: str
    rgb: np.ndarray | None
    note: str = ""
    scale: str = ""


@dataclass
class SamplePictures:
    """All pictures of one image.

    Attributes:
        id: id of the image.
        image: uint8 [H, W, 3].
        rows: task -> pictures of the label, the initial prediction, the denoising steps and the final
            prediction.
        note: a remark on the image.
    """

    id: str
    image: np.ndarray
    rows: Mapping[str, Sequence[Cell]]
    note: str = ""

    @property
    def captions(self) -> list[str]:
        return list(dict.fromkeys(cell.caption for cells in self.rows.values() for cell in cells))


class UncertaintyRow(NamedTuple):
    """How well uncertainty predicts errors of one task.

    Attributes:
        task: name of the task.
        auroc: probability that a wrong pixel is more uncertain than a right one.
        measure: measure and unit of the uncertainty ("entropy, nats").
        wrong: which pixels count as wrong.
    """

    task: str
    auroc: float
    measure: str
    wrong: str


@dataclass(frozen=True)
class Uncertainty:
    """Whether a method is uncertain where it is wrong.

    Attributes:
        method: name of the method.
        draws: number of noise samples per image.
        images: number of validation images.
        rows: the result of each task.
    """

    method: str
    draws: int
    images: int
    rows: Sequence[UncertaintyRow]

    @property
    def verdict(self) -> str:
        above, clearly = (sum(row.auroc > least for row in self.rows) for least in (0.5, 0.7))
        tasks = plural(len(self.rows), "task")
        return f"Uncertainty is higher where the prediction is wrong on {above} of {tasks}" + (
            f", clearly so (above 0.7) on {clearly}." if above else "."
        )


@dataclass
class ReportData:
    """Everything on the page. Sections without data are left out.

    Attributes:
        title: heading of the page.
        warning: why the methods cannot be compared; "" if they can.
        facts: (name, value) pairs about data and training.
        summary: result of `Comparison.summary`.
        label_matrix: which training images have labels of which tasks.
        metrics: the metrics of all methods.
        sources: names of the sources of the last method's data, if it joins several.
        by_source: main metrics of the last method, with a value for each source and for "all".
        order: order of the methods; empty: that of the metric rows.
        delta: Delta_MTL in percent of each method compared with the first one.
        runs: number of runs (seeds) in every mean.
        curves: training curves.
        uncertainty: how well uncertainty predicts errors.
        samples: pictures of predictions.
        legends: colours in the pictures of a task, `{task: [(name, (r, g, b)), ...]}`.
        notes: remarks at the end of the page.
    """

    title: str
    warning: str = ""
    facts: Sequence[tuple[str, object]] = ()
    summary: Sequence[Mapping[str, str]] = ()
    label_matrix: LabelMatrix | None = None
    metrics: Sequence[MetricRow] = ()
    sources: Sequence[str] = ()
    by_source: Sequence[MetricRow] = ()
    order: Sequence[str] = ()
    delta: Mapping[str, Value] = field(default_factory=dict)
    runs: int = 1
    curves: Sequence[Chart] = ()
    uncertainty: Uncertainty | None = None
    samples: Sequence[SamplePictures] = ()
    legends: Mapping[str, Sequence[tuple[str, tuple[int, int, int]]]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def methods(self) -> list[str]:
        """Return the names of the methods in `order`, then in that of the metric rows; the first one is the
        reference."""
        return list(dict.fromkeys([*self.order, *(name for row in self.metrics for name in row.values)]))

    @property
    def compared(self) -> list[str]:
        """Return the methods that are compared with the reference: those with a Delta_MTL."""
        return [name for name in self.methods[1:] if name in self.delta]

    def verdict(self, method: str) -> str:
        """Return a sentence on the Delta_MTL of a method that claims no more than its spread allows."""
        value, reference = self.delta[method], self.methods[0]
        if not math.isfinite(mean_of(value)):
            return "No Delta_MTL: at least one metric has no finite value."
        tone = tone_of(value)
        word = {"good": "ahead of", "bad": "behind", "even": "level with"}[tone]
        if spread_of(value) is None or self.runs < 2:
            result = f"In this run {method} is {word} {reference}."
            return f"{result} There is only one run of each, so the effect of the seed is unknown."
        over = f"over {self.runs} runs of each"
        if tone == "even":
            return f"No clear difference: the mean {over} lies within one standard deviation of zero."
        return f"{method} is {word} {reference} by more than one standard deviation, {over}."

    def gains(self, method: str) -> list[tuple[MetricRow, float]]:
        """Return the relative gain on each metric that enters Delta_MTL, if it has one."""
        found = ((row, row.gain(method, self.methods[0])) for row in self.metrics if row.primary)
        return [(row, gain) for row, gain in found if math.isfinite(gain)]


def write_report(path: str | os.PathLike, data: ReportData) -> Path:
    """Write `data` to the HTML file `path`, which needs no network, script or second file.

    Missing folders are created. The file is written atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render(data))
    return Path(path)


def render(data: ReportData) -> str:
    """Return the HTML of the page. Every string in `data` is escaped."""
    return page(
        "report.html.j2",
        data=data,
        panels=data.compared if len(data.compared) <= MOST_PANELS else [],
        charts=[(chart, svg) for chart in data.curves if (svg := chart_svg(chart))],
        colours=COLOURS,
        labels=label_section(data.label_matrix, data.sources),
    )
