"""The training step (forward, loss, backward, clipping, optimiser) vs. the published execution and the
expert's: published network, five tasks, S = 2, random weights; the default network of `dmtl train`; and the
data loader by itself.

All contenders of a case take turns, so a row of pytest-benchmark is one round of all; each contender's times
and ratios are in its extra_info. With DMTL_BENCH_ROWS=FILE all rows, peak memory included, are appended to
FILE as JSON lines: `benchmarks/results/training-cpu.jsonl` was created this way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from dmtl.models.encoder_weights import how_to_get, pretrained_source
from dmtl.train.config import DataConfig, RunConfig

from . import training
from .cases import Case
from .facts import keep
from .harness import DEVICE
from .training import OPTIM, TrainingCase, TrainingRace, recipe_case

GPU = DEVICE == "cuda"
SIZE, BATCHES, ROUNDS = ((512, 512), (6, 24), 9) if GPU else ((256, 256), (4, 8), 3)
MODES = ("default",) if GPU else ()  # on two CPU cores inductor takes minutes and cannot beat the library


def _case(batch: int, labels: str) -> TrainingCase:
    return TrainingCase(Case(size=SIZE, batch=batch, device=DEVICE), labels)


def show(rows: list[dict]) -> None:
    """Show the rows, and append them to the requested file."""
    for row in rows:
        print(json.dumps(row))
    if path := os.environ.get("DMTL_BENCH_ROWS"):
        keep(rows, Path(path), torch.device(DEVICE))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("labels", ["one", "random"])
def test_training_step(benchmark, capsys, batch, labels):
    time_steps(benchmark, capsys, _case(batch, labels), ROUNDS)


@pytest.mark.parametrize("diffusion", ["none", "feature"])
def test_recipe_step(benchmark, capsys, diffusion):
    """Time the network that `dmtl train` learns by default, as a baseline and with Feature Diffusion."""
    case = recipe_case(diffusion, DEVICE)
    if pretrained_source(case.options["backbone"]) is None:
        pytest.skip(how_to_get(case.options["backbone"]))
    time_steps(benchmark, capsys, TrainingCase(case), 9)


def time_steps(benchmark, capsys, case: TrainingCase, rounds: int) -> None:
    race = TrainingRace(case, modes=MODES)
    benchmark.pedantic(race.round, rounds=rounds)
    rows = race.result()
    benchmark.extra_info["contenders"] = rows
    with capsys.disabled():
        show(rows)
    assert [row["error"] for row in rows if "error" in row] == []


@pytest.mark.parametrize(("name", "precision"), training.names(torch.device(DEVICE)))
def test_peak_memory(benchmark, capsys, name, precision):
    """Measure three steps with one label for each image."""
    case = _case(BATCHES[0], "one")
    row = benchmark.pedantic(lambda: training.peak(case, name, precision, modes=()), rounds=1)
    with capsys.disabled():
        show([row])
    assert row["peak_mib"] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(benchmark, capsys, workers):
    """Load rendered scenes, augmented and batched."""
    config = RunConfig(data=DataConfig(size=SIZE, workers=workers), optim=OPTIM)
    row = benchmark.pedantic(lambda: training.loading(config), rounds=1)
    with capsys.disabled():
        show([row])
    assert row["images_per_s"] > 0
