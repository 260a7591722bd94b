"""The measurement next to busy processes, at toy sizes."""

import pytest

from benchmarks import busy
from benchmarks.cases import Case
from benchmarks.race import Race

TOY = Case(size=(64, 64), options={"width": 32, "backbone_width": 16, "blocks": 1, "decoder_blocks": 1})


def test_every_number_of_processes_has_a_row(monkeypatch):
    started = []
    real = busy.computing
    monkeypatch.setattr(busy, "computing", lambda others: started.append(others) or real(others))
    monkeypatch.setattr(
        busy, "races", lambda who: iter([("prediction", TOY.described(), Race(TOY, ["fp32"], who))])
    )
    rows = list(busy.slowdowns(rounds=2))
    assert started == [0, 1, 2]
    assert [(row["contender"], row["others"]) for row in rows] == [
        (title, others) for title in ("published fp32", "dmtl fp32") for others in busy.OTHERS
    ]
    for row in rows:
        quiet = rows[rows.index(row) - row["others"]]
        assert row["times_quiet"] == pytest.approx(row["median_ms"] / quiet["median_ms"])


def test_the_processes_end(monkeypatch):
    started, real = [], busy.subprocess.Popen
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *a: started.append(real(*a)) or started[-1])
    with busy.computing(2):
        assert [process.poll() for process in started] == [None, None]
    with pytest.raises(ZeroDivisionError), busy.computing(1):
        raise ZeroDivisionError
    assert len(started) == 3 and all(process.poll() is not None for process in started)
