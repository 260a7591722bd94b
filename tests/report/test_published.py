"""Published figures: their Delta_MTL by its formula, their sources, what enters no statement."""

from __future__ import annotations

import pytest

from dmtl.errors import ConfigError
from dmtl.report.paper.build import published_tables
from dmtl.report.paper.published import BENCHMARKS, SETTINGS, every_row, published, published_delta


def said(table, text):
    return any(text in remark for remark in table.remarks)


def test_delta_of_the_published_rows_is_what_was_published():
    """PASCAL-Context, one label: +3.23 % for Prediction and +3.64 % for Feature Diffusion."""
    rows = {row.method: row for row in published("pascal-context", "one-label")}
    assert round(published_delta(rows["Prediction"]), 2) == 3.23
    assert round(published_delta(rows["Feature"]), 2) == 3.64
    assert round(published_delta(rows["Feature, released"]), 2) == 3.50
    feature, stl = (57.78, 58.98, 77.82, 16.11, 64.50), (50.34, 59.05, 77.43, 16.59, 64.40)
    signs = (1, 1, 1, -1, 1)
    by_hand = 100 / 5 * sum(s * (a - b) / b for s, a, b in zip(signs, feature, stl, strict=True))
    assert published_delta(rows["Feature"]) == pytest.approx(by_hand)
    assert published_delta(rows["STL"]) is None
    nyud_rows = {row.method: row for row in published("nyud-13", "one-label") if not row.network}
    assert round(published_delta(nyud_rows["Feature"]), 2) == -2.26


def test_published_rows_name_their_source_and_fill_nothing_in():
    for row in every_row():
        assert (
            row.source
            and row.setting in SETTINGS
            and row.results.keys() <= set(BENCHMARKS[row.benchmark].tasks)
        )
        assert not row.results or set(row.results) == set(BENCHMARKS[row.benchmark].tasks)
        assert not row.results or all(value > 0 for value in row.results.values())
    memory = [row for row in every_row() if "memory" in row.source]
    assert [(row.method, bool(row.doubt)) for row in memory] == [("MTL", True)]
    cityscapes = [row for row in published("cityscapes-7", "one-label") if not row.network]
    assert [row.method for row in cityscapes] == ["STL", "MTL", "MTPSL", "Prediction", "Feature"]
    assert not any(row.results for row in cityscapes)  # none was recovered


def test_doubtful_rows_and_other_networks_enter_no_statement():
    tables_ = {(t.benchmark.name, t.setting): t for t in published_tables()}
    pascal = tables_["pascal-context", "one-label"]
    [memory] = [row for row in pascal.rows if row.method == "MTL"]
    assert not memory.certain and memory.label == "MTL†" and memory.delta is not None
    assert not said(pascal, "MTL:") and said(pascal, "for Prediction and Feature it is as printed")
    nyud_table = tables_["nyud-13", "one-label"]
    segnet = [row for row in nyud_table.rows if row.printed.network == "SegNet"]
    assert segnet and not any(row.certain or row.delta for row in segnet)
    for table in tables_.values():
        for column in table.columns:
            assert all(row.certain for row in table.best(column, True))
    best = pascal.best(pascal.columns[3], True)  # the lowest error: TPKR's 15.63
    assert [row.method for row in best] == ["TPKR"]


def test_one_benchmark_alone():
    assert {t.benchmark.name for t in published_tables("nyud-13")} == {"nyud-13"}
    assert published_tables("nyud-40") == []
    with pytest.raises(ConfigError, match="got 'nyud13' .did you mean 'nyud-13'"):
        published_tables("nyud13")
