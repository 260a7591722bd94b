"""JSON that every strict reader takes."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dmtl.cli import main
from dmtl.evaluation.baseline import read_reference
from dmtl.report.runs.run import read_run
from dmtl.runtime.files import (
    float_from_json,
    is_temporary,
    json_text,
    original_stem,
    temporary_name,
    write_json,
)
from dmtl.train.log import RunLog


def strict(text: str):
    """What JSON.parse, jq or Go make of it: an error for NaN and Infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks(tmp_path, value):
    assert strict(json_text({"a": [value, (1.5, value)], "b": {"c": value}})) == {
        "a": [None, [1.5, None]],
        "b": {"c": None},
    }
    write_json(tmp_path / "x.json", [value, 1])
    assert strict((tmp_path / "x.json").read_text()) == [None, 1]
    assert math.isnan(float_from_json(None)) and float_from_json(2) == 2.0


def test_names_of_temporary_files(tmp_path):
    handle, temporary = tempfile.mkstemp(**temporary_name(tmp_path / "a.b.png"))
    os.close(handle)
    name = Path(temporary).name
    assert is_temporary(name) and original_stem(name) == "a.b" and not is_temporary("a.b.png")


def test_a_log_gives_back_what_it_took(tmp_path):
    log = RunLog(tmp_path)
    log.write("train", 1, loss=math.nan)
    log.write("eval", 1, delta=None, metrics={"sal": {"maxF": math.nan, "bce": 0.5}})
    log.close()
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        strict(line)
    train, scored = RunLog.read(tmp_path / "log.jsonl")
    assert math.isnan(train["loss"]) and scored["delta"] is None
    assert math.isnan(scored["metrics"]["sal"]["maxF"]) and scored["metrics"]["sal"]["bce"] == 0.5


@pytest.fixture
def unscored(tmp_path):
    """A data set whose validation images have no label of `sal`."""
    rng = np.random.default_rng(0)
    tasks = {"semseg": {"kind": "classes", "classes": ["sky", "road"]}, "sal": {"kind": "binary"}}
    for name in ("images", "splits", *tasks):
        (tmp_path / "data" / name).mkdir(parents=True)
    for split, ids in {"train": "ab", "val": "cd"}.items():
        (tmp_path / "data/splits" / f"{split}.txt").write_text("\n".join(ids))
        for id in ids:
            files = {"images": rng.integers(0, 256, (32, 32, 3)), "semseg": rng.integers(0, 2, (32, 32))}
            if split == "train":
                files["sal"] = rng.integers(0, 2, (32, 32))
            for name, pixels in files.items():
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{id}.png")
    (tmp_path / "data/dataset.yaml").write_text(yaml.safe_dump({"name": "unscored", "tasks": tasks}))
    return tmp_path / "data"


def test_every_file_of_a_run_is_strict(unscored, tmp_path, capsys, one_thread):
    run = tmp_path / "run"
    words = "--data.labels full --data.size 32 32 --model.backbone resnet18 --model.backbone-width 8"
    words += " --model.width 8 --model.heads 2 --optim.steps 2 --optim.batch-size 2 --optim.warmup 0"
    words += " --optim.backbone-weights"
    assert main(["train", "--data.root", str(unscored), "--out", str(run), *words.split(), ""]) == 0
    scored, compared = tmp_path / "eval.json", tmp_path / "report.json"
    assert main(["eval", str(run), "--data", str(unscored), "--json", str(scored)]) == 0
    assert main(["report", str(run), "--json", str(compared)]) == 0
    capsys.readouterr()
    texts = [file.read_text() for file in (run / "metrics.json", run / "best/metrics.json", scored, compared)]
    texts += (run / "log.jsonl").read_text().splitlines()
    assert all(strict(text) for text in texts)
    assert strict(texts[0])["metrics"]["sal"]["maxF"] is None
    assert math.isnan(read_run(run).metrics["sal"]["maxF"]) and math.isnan(read_reference(run)["sal"]["maxF"])
