"""A table of the paper: rows of runs, and the published rows next to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dmtl.report.paper.published import SETTINGS, Benchmark, Column, Published
from dmtl.report.runs.comparison import Delta
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import Run
from dmtl.report.runs.values import Value, mean_of, value_of


@dataclass(eq=False)
class Row:
    """A row.

    Attributes:
        method: what it is in the paper, "STL" or "Feature".
        detail: tells measured rows of one method apart.
        measured: the runs of a measured row.
        by_seed: its results, {seed: {task: value}}.
        printed: what was published; None for a measured row.
    """

    method: str
    detail: str = ""
    measured: Method | None = None
    by_seed: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    printed: Published | None = None
    delta: Delta | None = None

    @property
    def published(self) -> bool:
        return self.printed is not None

    @property
    def name(self) -> str:
        detail = self.printed.network if self.printed else self.detail
        return self.method + (f" ({detail})" if detail else "")

    @property
    def certain(self) -> bool:
        """Whether it may enter statements: measured, or verified and of the paper's network."""
        return self.printed is None or not (self.printed.doubt or self.printed.network)

    @property
    def lost(self) -> bool:
        """Whether it was published and not recovered."""
        return self.published and not self.values

    @cached_property
    def values(self) -> dict[str, Value]:
        """Results by task, over seeds; a task without any is missing."""
        if self.printed is not None:
            return dict(self.printed.figures)
        tasks = dict.fromkeys(task for results in self.by_seed.values() for task in results)
        return {t: value_of([r[t] for r in self.by_seed.values() if t in r]) for t in tasks}

    @property
    def runs(self) -> Sequence[Run]:
        return self.measured.runs if self.measured else ()

    @property
    def files(self) -> list[str]:
        """Names of the files that its results are from."""
        return list(dict.fromkeys(run.file for run in self.runs))


@dataclass
class PaperTable:
    """A table. `rows` are in the order of the paper, of a method the published ones first; `benchmark` is
    None for a data set that is not one of the paper's. Measured rows have Delta_MTL against `reference`."""

    title: str
    setting: str
    benchmark: Benchmark | None
    columns: Sequence[Column]
    rows: list[Row]
    reference: Row | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        return f"{self.title}, {SETTINGS.get(self.setting, self.setting)}"

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if not row.published]

    @property
    def sources(self) -> list[str]:
        """Where published rows are from, each once."""
        return list(dict.fromkeys(row.printed.reference for row in self.rows if row.printed))

    def best(self, column: Column, among_published: bool) -> list[Row]:
        """Return the rows with the best result among the measured or the published ones that are certain;
        none if there is nothing to compare."""
        rows = [row for row in self.rows if row.published == among_published and row.certain]
        found = [(mean_of(row.values[column.task]), row) for row in rows if column.task in row.values]
        found = [(value, row) for value, row in found if math.isfinite(value)]
        if len({value for value, _ in found}) < 2:
            return []
        top = (max if column.higher_is_better else min)(value for value, _ in found)
        return [row for value, row in found if value == top]
