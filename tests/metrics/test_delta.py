"""Delta_MTL reproduces the figures of the published tables from their own metrics."""

import math
from types import SimpleNamespace

import pytest

from dmtl.metrics import delta_mtl
from dmtl.tasks import make_task

# PASCAL-Context, one label per image: mIoU, mIoU, maxF, mean angle, odsF.
TASKS = [
    SimpleNamespace(name=name, primary=primary, higher_is_better=higher)
    for name, primary, higher in (
        ("semseg", "mIoU", True),
        ("human_parts", "mIoU", True),
        ("sal", "maxF", True),
        ("normals", "mean", False),
        ("edge", "odsF", True),
    )
]
SINGLE = (50.34, 59.05, 77.43, 16.59, 64.40)


def table(values):
    return {t.name: {t.primary: v} for t, v in zip(TASKS, values, strict=True)}


@pytest.mark.parametrize(
    ("row", "published"),
    [
        ((57.78, 58.98, 77.82, 16.11, 64.50), 3.64),
        ((59.43, 56.79, 77.57, 16.20, 64.00), 3.23),
        ((57.16, 59.28, 78.00, 16.17, 64.60), 3.50),
        ((44.73, 57.03, 75.69, 16.47, 64.30), -3.25),
        ((55.08, 56.72, 77.06, 16.93, 63.70), 0.37),
        (SINGLE, 0.0),
    ],
)
def test_published_rows(row, published):
    assert delta_mtl(table(row), table(SINGLE), TASKS) == pytest.approx(published, abs=0.0051)


def test_takes_tasks_by_name_and_a_subset():
    tasks = {"sal": make_task("sal"), "depth": make_task("depth")}
    ours = {"sal": {"maxF": 66.0}, "depth": {"rmse": 0.9}, "other": {}}
    reference = {"sal": {"maxF": 60.0}, "depth": {"rmse": 1.0}}
    assert delta_mtl(ours, reference, tasks) == pytest.approx(10.0)
    assert delta_mtl(ours, reference, [tasks["sal"]]) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("ours", "reference", "message"),
    [
        ({}, {"sal": {"maxF": 60.0}}, "delta_mtl: metrics must be finite for sal maxF, got nothing"),
        (
            {"sal": {"maxF": math.nan}},
            {"sal": {"maxF": 60.0}},
            "metrics must be finite for sal maxF, got nan",
        ),
        ({"sal": {"maxF": 60.0}}, {"sal": {"F": 60.0}}, "reference must be finite for sal maxF, got nothing"),
        ({"sal": {"maxF": 60.0}}, {"sal": {"maxF": 0.0}}, "reference must not be 0 for sal maxF, got 0"),
    ],
)
def test_bad_tables(ours, reference, message):
    with pytest.raises(ValueError, match=message):
        delta_mtl(ours, reference, [make_task("sal")])


def test_needs_a_task():
    with pytest.raises(ValueError, match="delta_mtl: tasks must have at least one task, got none"):
        delta_mtl({}, {}, [])
