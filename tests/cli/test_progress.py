"""Progress in a log file: plain lines, by a fake clock and in the output of commands."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from rich.console import Console

from dmtl.cli import _progress, demo
from dmtl.cli._progress import PlainLine, Relay, TrainingProgress, bar, progress
from dmtl.tasks import make_task

from .conftest import SHORT


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def test_one_line_a_minute(clock):
    """However often steps end and the clock is looked at; and none after the last step."""
    lines = []
    update = PlainLine("run", "steps", lines.append, clock)
    for second in range(241):
        clock.seconds = 100 + second
        if second <= 200:
            update(5 * second, 1000, f"loss {second}")
        update.tick()
    assert lines == [
        "run: 300 of 1,000 steps, loss 60, 5 steps/s, 2 min 20 s left",
        "run: 600 of 1,000 steps, loss 120, 5 steps/s, 1 min 20 s left",
        "run: 900 of 1,000 steps, loss 180, 5 steps/s, 20 s left",
    ]


def test_a_step_of_several_minutes(clock):
    """Nothing calls `update` meanwhile, and the line still comes; before the first step there is none."""
    lines = []
    update = PlainLine("predicting", "images", lines.append, clock)
    clock.seconds += 90
    update.tick()
    assert not lines
    update(0, 3)
    clock.seconds += 61
    update.tick()
    update(1, 3)
    clock.seconds += 59
    update.tick()
    clock.seconds += 2
    update.tick()
    assert lines == [
        "predicting: 0 of 3 images",
        "predicting: 1 of 3 images, 0.0082 images/s, 4 min 04 s left",
    ]


def test_an_evaluation_is_printed_at_once(clock):
    """With the main metrics; a resumed run's speed is that of its new steps. The minute begins again."""
    lines = []
    tasks = {"depth": make_task("depth"), "semseg": make_task("semseg", classes=3)}
    shown = TrainingProgress(PlainLine("run", "steps", lines.append, clock), tasks)
    shown.on_step(500, 600, float("nan"))
    clock.seconds += 50
    shown.on_step(550, 600, 0.5)
    shown.on_eval(
        550, 600, {"depth": {"rmse": 0.25}, "initial/depth": {"rmse": 9.0}, "semseg": {"mIoU": 42.0}}
    )
    clock.seconds += 59
    shown._update.tick()
    assert lines == [
        "run: 550 of 600 steps, loss 0.5, 1 steps/s, 50 s left; depth rmse 0.2500, semseg mIoU 42.00"
    ]


def test_a_thread_looks_at_the_clock(monkeypatch):
    monkeypatch.setattr(_progress, "INTERVAL", 0.0)
    monkeypatch.setattr(_progress, "_PAUSE", 0.001)
    text = io.StringIO()
    monkeypatch.setattr(_progress, "console", Console(file=text))
    with progress() as new_bar:
        new_bar("reading", "files")(1, 2)
        while not text.getvalue():
            time.sleep(0.001)
    assert text.getvalue().startswith("reading: 1 of 2 files\n")


def test_a_short_loop_is_silent(capsys):
    assert list(bar("reading")([1, 2])) == [1, 2] and list(bar("reading")([])) == []
    assert capsys.readouterr() == ("", "")


def test_what_other_processes_print(tmp_path):
    """Whole new lines of progress, and nothing else of their logs."""
    log, lines = tmp_path / "a.log", []
    log.write_text("out/a: 1 of 9 steps, loss 1\n")
    relay = Relay({"out/a": log, "out/b": tmp_path / "b.log"}, lines.append)
    relay()
    with open(log, "a") as file:
        file.write("out/a: 2 of 9 steps, loss 1\nout/a: 9 steps\nwarning: 1 of 2 files\nout/a: 3 of 9")
    relay()
    with open(log, "a") as file:
        file.write(" steps\n")
    (tmp_path / "b.log").write_text("out/b: 1,000 of 2,000 steps, loss 1\n")
    relay()
    relay()
    assert lines == [
        "out/a: 2 of 9 steps, loss 1",
        "out/a: 3 of 9 steps",
        "out/b: 1,000 of 2,000 steps, loss 1",
    ]


def test_training_into_a_file(dmtl, data):
    """A line for every evaluation, in one piece."""
    words = ["--data.root", data, *SHORT, "--log.eval-every", "1", "--out", "run"]
    status, out, _ = dmtl("train", *words)
    assert status == 0
    found = re.findall(
        r"^run: (\d) of 2 steps, loss [\d.]+,.* steps/s.*; semseg mIoU .*, height rmse .*$", out, re.M
    )
    assert found == ["1", "2"]


def test_bars_of_the_demo(tmp_path, monkeypatch):
    """On a terminal the runs' logs move two bars."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    console = Console(file=Terminal(), width=100, color_system=None)
    monkeypatch.setattr(_progress, "console", console)
    for name, step in (("mtl", 30), ("diffusion", 10)):
        (tmp_path / name).mkdir()
        rows = [{"event": "train", "step": step, "loss": 0.5}, {"event": "eval", "step": step}]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with demo._bars(40, tmp_path) as look:
        look()
    assert re.search(r"MTL .*30/40 loss 0.5", console.file.getvalue())
    assert re.search(r"DiffusionMTL .*10/40 loss 0.5", console.file.getvalue())
