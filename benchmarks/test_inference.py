"""The whole model: the engine in each precision vs. the published execution and the expert's, at 512x512,
five tasks, S = 2, random weights.

All contenders of a batch take turns, so a row of pytest-benchmark is one round of all; each contender's times
and ratios are in its extra_info and in the printed table.
"""

from __future__ import annotations

import pytest

from .contenders import Case
from .harness import DEVICE
from .page import contenders_table
from .race import Race

BATCHES = (1, 8, 32) if DEVICE == "cuda" else (1, 4)
ROUNDS = 9 if DEVICE == "cuda" else 3


@pytest.mark.parametrize("batch", BATCHES)
def test_inference(benchmark, capsys, batch):
    race = Race(Case(batch=batch, device=DEVICE))
    benchmark.pedantic(race.round, rounds=ROUNDS)
    rows = race.result()
    benchmark.extra_info["contenders"] = rows
    table = contenders_table(rows)
    with capsys.disabled():
        print(f"\n{table.title}")
        for cells in (table.header, *table.cells):
            print("".join(f"{cell:<12}" for cell in cells))
        print(table.note)
    assert [row["error"] for row in rows if "error" in row] == []
