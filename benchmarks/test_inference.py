"""The whole model: the engine in each precision vs. the published execution, the expert's and those of other
runtimes, in the standard cases.

All contenders of a case take turns, so a row of pytest-benchmark is one round of all; each contender's times
and ratios are in its extra_info and in the printed table.
"""

from __future__ import annotations

import pytest

from .cases import standard
from .harness import DEVICE
from .page import contenders_table, described
from .race import Race

ROUNDS = 9 if DEVICE == "cuda" else 3


@pytest.mark.parametrize("case", standard(DEVICE), ids=lambda case: described(case.described()))
def test_inference(benchmark, capsys, case):
    race = Race(case)
    benchmark.pedantic(race.round, rounds=ROUNDS)
    rows = race.result()
    benchmark.extra_info["contenders"] = rows
    table = contenders_table(rows)
    with capsys.disabled():
        print(f"\n{table.title}")
        for cells in (table.header, *table.cells):
            print("".join(f"{cell:<24}" if i == 0 else f"{cell:<14}" for i, cell in enumerate(cells)))
        print(table.note)
    assert [row["error"] for row in rows if "error" in row] == []
