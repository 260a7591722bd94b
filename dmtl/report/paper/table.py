"""A table of the paper: measured rows next to published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dmtl.evaluation.baseline import EVAL
from dmtl.report.paper.published import SETTINGS, Benchmark, Column, Published
from dmtl.report.runs.comparison import Delta
from dmtl.report.runs.methods import Method
from dmtl.report.runs.run import TRAINING, Run
from dmtl.report.runs.values import Value, best_of, texts_of, tone_of

SHORT = {EVAL: "eval", TRAINING: "train"}
LOST, REFERENCE = "n.r.", "ref."  # for results not recovered, and for the reference's Delta_MTL
DAGGER = "\N{DAGGER}"


class Cell(NamedTuple):
    """A result and its spread ("" for one seed) as text; both "" if there is none."""

    mean: str = ""
    spread: str = ""
    best: bool = False
    tone: str = ""


@dataclass(eq=False)
class Row:
    """A row.

    Attributes:
        method: its name in the paper, such as "STL" or "Feature".
        values: results by task, over seeds; a task without results is missing.
        detail: distinguishes measured rows of one method.
        measured: the runs of a measured row.
        printed: the published row; None for a measured row.
    """

    method: str
    values: Mapping[str, Value]
    detail: str = ""
    measured: Method | None = None
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
    def label(self) -> str:
        """The name, with a dagger if the row is not verified."""
        return self.name + (DAGGER if self.printed and self.printed.doubt else "")

    @property
    def certain(self) -> bool:
        """Whether statements may use it: measured, or verified and of the paper's network."""
        return self.printed is None or not (self.printed.doubt or self.printed.network)

    @property
    def runs(self) -> Sequence[Run]:
        return self.measured.runs if self.measured else ()

    @property
    def seeds(self) -> list[int]:
        return self.measured.seeds if self.measured else []

    @property
    def files(self) -> list[str]:
        """Names of the files its results come from."""
        return list(dict.fromkeys(run.file for run in self.runs))


@dataclass
class PaperTable:
    """A table. `rows` are in the paper's order, within a method published ones first. `benchmark` is None for
    a data set that is not the paper's. Measured rows have Delta_MTL against `reference`."""

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
        """The sources of published rows, each once."""
        return list(dict.fromkeys(row.printed.reference for row in self.rows if row.printed))

    def best(self, column: Column, among_published: bool) -> list[Row]:
        """Return the rows with the best result among the measured or the published ones that are certain;
        none if there is nothing to compare."""
        rows = [row for row in self.rows if row.published == among_published and row.certain]
        values = {row: row.values[column.task] for row in rows if column.task in row.values}
        return best_of(values, column.higher_is_better)

    def origin(self, row: Row) -> str:
        """Return where results come from: "[1]" is the first of `sources`, "eval" is eval.json, "train"
        metrics.json."""
        if row.printed:
            return f"[{self.sources.index(row.printed.reference) + 1}]"
        return "+".join(SHORT[file] for file in row.files)

    def cells(self, row: Row) -> list[Cell]:
        """Return a row as text, published results as printed: a cell for each column, then Delta_MTL with a
        star if it does not cover all tasks."""
        if not row.measured and not row.values:
            return [Cell(LOST)] * (len(self.columns) + 1)
        cells = []
        for column in self.columns:
            if (value := row.values.get(column.task)) is None:
                cells.append(Cell())
                continue
            printed = len(str(value).partition(".")[2]) if row.published else 0
            texts = texts_of(value, max(column.digits, printed))
            cells.append(Cell(*texts, best=row in self.best(column, row.published)))
        if row.delta is None:
            return [*cells, Cell(REFERENCE if row is self.reference else "")]
        mean, spread = texts_of(row.delta.value, 2, sign=True)
        star = "*" if len(row.delta.tasks) < len(self.columns) else ""
        return [*cells, Cell(mean + star, spread, tone=tone_of(row.delta.value) if row.certain else "")]
