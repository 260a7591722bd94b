"""The whole way: data set -> training -> evaluation -> prediction -> report, as commands on a tiny folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.text import fixed

from .conftest import HEIGHT, SHORT, TASKS, WIDTH, environment


def test_train(trained, data):
    """A run's folder holds everything that its report and its resumption need."""
    assert {path.name for path in trained.iterdir()} >= {
        "config.toml",
        "labels.csv",
        "log.jsonl",
        "metrics.json",
    }
    assert {path.name for path in (trained / "model").iterdir()} == {"config.json", "model.safetensors"}
    summary = json.loads((trained / "metrics.json").read_text())
    assert summary["step"] == 2
    assert set(summary["metrics"]) == {*TASKS, *(f"initial/{task}" for task in TASKS)}
    rows = (trained / "labels.csv").read_text().splitlines()
    assert rows[0] == "id,semseg,normals,cracks,height"
    assert [row.split(",")[1:].count("1") for row in rows[1:]] == [1, 1, 1, 1]  # one label per image


def test_run_folder_is_kept(dmtl, trained, data):
    before = (trained / "metrics.json").read_bytes()
    status, _, err = dmtl("train", "--data.root", data, "--out", trained, *SHORT)
    assert status == 2
    assert err == f"dmtl train: {trained} already holds a run; choose another out, or resume it\n"
    assert (trained / "metrics.json").read_bytes() == before


def test_resume(dmtl, tmp_path, data, monkeypatch):
    """Interrupted after two of four steps and resumed: the weights of a run that was never stopped."""
    from dmtl.train.trainer import Trainer

    common = ["train", "--data.root", data, *SHORT, "--optim.steps", 4, "--log.checkpoint-every", 2]
    assert dmtl(*common, "--out", "whole").status == 0
    save = Trainer.save

    def save_and_stop(self, **options):
        save(self, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_and_stop)
        status, _, err = dmtl(*common, "--out", "cut")
    assert (status, err) == (130, "dmtl train: interrupted\n")
    assert not (tmp_path / "cut" / "model").exists()
    status, out, _ = dmtl("train", tmp_path / "cut" / "config.toml", "--resume")
    assert status == 0
    assert "resumed at step 2" in out
    whole, resumed = (
        (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "cut")
    )
    assert whole == resumed


def test_a_run_that_stops_itself_says_how_to_go_on(dmtl, tmp_path, data, monkeypatch):
    """SIGTERM: the state is saved, one line says so, and the status is not that of a finished run."""
    import os

    from dmtl.train.trainer import Trainer

    take = Trainer.take

    def take_and_signal(self, batch):
        take(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take", take_and_signal)
        status, _, err = dmtl("train", "--data.root", data, *SHORT, "--out", "run")
    message = "stopped by SIGTERM after step 1 of 2; the state is saved, resume continues"
    assert (status, err) == (128 + signal.SIGTERM, f"dmtl train: {message}\n")
    assert dmtl("train", tmp_path / "run" / "config.toml", "--resume").status == 0


def test_resume_refuses_another_configuration(dmtl, trained):
    changed = ("--optim.lr", "0.5", "--optim.steps", "3")
    status, _, err = dmtl("train", trained / "config.toml", "--resume", *changed)
    assert status == 2
    assert "another configuration: optim.steps was 2, now 3; optim.lr was 0.001, now 0.5. Resume with" in err


def test_resume_takes_what_does_not_decide_the_weights(dmtl, trained):
    """How samples are read and kept may change between two parts of a run."""
    shutil.copytree(trained, "again")
    options = ("--data.skip-corrupt", "1", "--data.no-cache", "--log.keep", "3", "--execution.recompute")
    status, out, _ = dmtl("train", "again/config.toml", "--out", "again", "--resume", *options)
    assert status == 0 and "resumed at step 2" in out


def test_config_file_and_overrides(dmtl, tmp_path, trained, data):
    """The resolved configuration of a run trains again; options win over the file."""
    (tmp_path / "mine.toml").write_text((trained / "config.toml").read_text())
    status, _out, _ = dmtl("train", "mine.toml", "--out", "again", "--model.diffusion", "prediction")
    assert status == 0
    config = json.loads((tmp_path / "again" / "model" / "config.json").read_text())
    assert (config["diffusion"], config["width"]) == ("prediction", 8)


def test_eval(dmtl, tmp_path, trained, data):
    """The figures that training printed, task by task, and as JSON."""
    status, out, _ = dmtl("eval", trained, "--data", data, "--size", 32, 32, "--json", "figures.json")
    assert status == 0
    assert all(word in out for word in ("mIoU", "rmse", "final map", "initial map", *TASKS))
    figures = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    expected = json.loads((trained / "metrics.json").read_text())["metrics"]
    for task in TASKS:
        assert figures[task] == pytest.approx(expected[task], rel=1e-4, nan_ok=True)


def test_eval_of_some_tasks_at_native_size(dmtl, trained, data):
    status, out, _ = dmtl("eval", trained, "--data", data, "--tasks", "height", "--count", 1, "--steps", 1)
    assert status == 0
    assert "height" in out and "semseg" not in out and "1 images" in " ".join(out.split())  # lines break


def test_eval_of_several_steps(dmtl, tmp_path, trained, data):
    """A row of time and metrics for each number of steps, equal to the evaluation of it alone."""
    words = ("eval", trained, "--data", data, "--json", "figures.json")
    status, out, _ = dmtl(*words, "--steps", 2, 1, "auto")
    assert status == 0 and all(word in out for word in ("steps", "auto", "Delta", "mIoU"))
    rows = json.loads((tmp_path / "figures.json").read_text())["steps"]
    assert [row["steps"] for row in rows] == [2, 1, "auto"] and all(row["ms_per_image"] > 0 for row in rows)
    assert 2 <= rows[2]["steps_taken"] <= 8
    dmtl(*words, "--steps", 1)
    alone = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    for task, metrics in rows[1]["metrics"].items():
        assert metrics == pytest.approx(alone[task], rel=1e-4, nan_ok=True)


def test_eval_of_several_steps_without_a_gain(dmtl, trained, data, tmp_path):
    """Delta_MTL is over the tasks that have a value in both rows; the others are shown as n/a."""
    for tasks in (["height", "cracks"], ["cracks"]):
        copy = tmp_path / str(len(tasks))
        shutil.copytree(data, copy)
        shutil.rmtree(copy / "cracks")
        status, out, err = dmtl("eval", trained, "--data", copy, "--tasks", *tasks, "--steps", 1, 2)
        assert status == 0, err
        assert out.count("n/a") == (2 if len(tasks) == 2 else 3)


def test_eval_of_several_draws(dmtl, tmp_path, trained, data):
    status, out, _ = dmtl("eval", trained, "--data", data, "--samples", 3, "--json", "figures.json")
    assert status == 0 and "uncertainty_auroc" in out
    metrics = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert all(0 <= values["uncertainty_auroc"] <= 1 for values in metrics.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps must be numbers from 1 or \"auto\", got '0'"),
        (["--precision", "fp8"], "precision must be one of auto, fp32, bf16 on a cpu, got 'fp8'"),
        (["--samples", "0"], "--samples must be an integer of at least 1, got 0"),
    ],
)
def test_eval_refuses(dmtl, trained, data, words, message):
    status, _, err = dmtl("eval", trained, "--data", data, *words)
    assert status == 2 and message in err and err.count("\n") == 1


def test_predict(dmtl, tmp_path, trained, data):
    """All maps of all images, at the images' own size, from a folder and a file."""
    Image.new("RGB", (50, 20)).save(tmp_path / "wide.jpg")
    status, out, err = dmtl("predict", trained, data / "images", "wide.jpg", "--out", "maps")
    assert (status, err) == (0, "")
    assert "7 images predicted" in out
    for task in TASKS:
        for name, size in (("a", (WIDTH, HEIGHT)), ("wide", (50, 20))):
            with (
                Image.open(tmp_path / "maps" / task / f"{name}.png") as map,
                Image.open(tmp_path / "maps" / "pictures" / task / f"{name}.png") as picture,
            ):
                assert map.size == picture.size == size
    assert np.asarray(Image.open(tmp_path / "maps" / "semseg" / "a.png")).max() < 3


def test_predict_goes_on_past_bad_files(dmtl, tmp_path, trained, data):
    """An unreadable image is named at the end, the others are done, and the status says so."""
    (tmp_path / "broken.png").write_bytes((data / "images" / "a.png").read_bytes()[:500])
    status, out, err = dmtl(
        "predict", trained, "broken.png", "gone.png", data / "images" / "b.png", "--out", "maps"
    )
    assert (status, err) == (1, "")
    assert "broken.png" in out and "gone.png" in out and "2 failed" in out
    assert [path.name for path in (tmp_path / "maps" / "semseg").iterdir()] == ["b.png"]


def test_predict_repeats(dmtl, tmp_path, trained, data):
    """The noise follows --seed, and an image's maps do not depend on the others."""
    for out, seed, images in (
        ("one", 0, [data / "images" / "c.png"]),
        ("two", 0, [data / "images"]),
        ("three", 1, [data / "images"]),
    ):
        assert dmtl("predict", trained, *images, "--out", out, "--seed", seed, "--no-pictures").status == 0
    maps = {out: (tmp_path / out / "normals" / "c.png").read_bytes() for out in ("one", "two", "three")}
    assert maps["one"] == maps["two"]
    assert not (tmp_path / "one" / "pictures").exists()


def test_report(dmtl, tmp_path, trained, baseline):
    status, out, _ = dmtl("report", trained, "--baseline", baseline, "--out", "page.html", "--pictures", 1)
    assert status == 0 and out.endswith("wrote page.html\n")
    page = (tmp_path / "page.html").read_text()
    assert all(word in page for word in ("Feature", "MTL", "mIoU", "data:image/", *TASKS))


def test_report_of_one_run(dmtl, tmp_path, trained):
    status, out, _ = dmtl("report", trained)
    assert status == 0 and all(task in out for task in TASKS) and "Delta_MTL %" not in out
    assert "baseline" not in out and list(tmp_path.iterdir()) == []


TABLE = """
[data]
tasks = ["semseg", "height"]
labels = "full"
[methods]
baseline = "plain"
[methods.plain]
label = "MTL | plain"
model = {diffusion = "none"}
[methods.longer]
like = "plain"
time_of = "feature"
[methods.single]
single_task = true
model = {diffusion = "none"}
[methods.feature]
[methods.broken]
optim = {backbone_weights = "nothing.pth"}
"""


def test_claim(dmtl, tmp_path, data):
    """Methods as the file describes them, two at a time; a second call finds them done and goes on."""
    (tmp_path / "table.toml").write_text(TABLE)
    words = ["claim", "table.toml", "--data.root", data, *SHORT, "--out", "claim", "--processes", 2]
    status, out, err = dmtl(*words, "--seeds", 3, "--methods", "longer", "single")
    assert (status, err) == (0, "")
    assert "seed 3: single, height: done" in out and "broken" not in out and "MTL | plain" in out
    claim = json.loads((tmp_path / "claim" / "claim.json").read_text())
    assert claim["baseline"] == "plain" and claim["methods"]["longer"]["time_of"] == "feature"
    assert claim["methods"]["single"]["config"]["model"]["diffusion"] == "none"
    runs = {(run["seed"], run["method"], run.get("part")): run for run in claim["runs"]}
    methods = [(name, None) for name in ("plain", "longer", "feature")]
    methods += [("single", task) for task in ("semseg", "height")]
    assert set(runs) == {(3, *method) for method in methods}
    for (seed, method, task), run in runs.items():
        assert run["seconds_per_step"] == run["seconds"] / run["steps"]
        tasks = {task} if task else {"semseg", "height"}
        initial = {f"initial/{name}" for name in tasks} if method == "feature" else set()
        assert set(run["metrics"]) == tasks | initial
        assert (tmp_path / "claim" / f"seed{seed}" / method / (task or "") / "model").is_dir()
    plain, feature = runs[3, "plain", None], runs[3, "feature", None]
    steps = max(1, round(plain["steps"] * feature["seconds"] / plain["seconds"]))
    assert (plain["steps"], runs[3, "longer", None]["steps"]) == (2, steps)
    assert all(claim["methods"][name]["delta"]["paired"] for name in ("longer", "single", "feature"))

    before = (tmp_path / "claim" / "seed3" / "feature" / "metrics.json").stat().st_mtime_ns
    options = ("--seeds", 3, "--markdown", "table.md", "--json", "all.json")
    status, out, _ = dmtl(*words, *options)
    assert status == 1 and "seed 3: broken failed: dmtl train: optim.backbone_weights: nothing.pth" in out
    assert (tmp_path / "claim" / "seed3" / "feature" / "metrics.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "all.json").read_text()) == claim
    rows = [line[2:-2].split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()]
    labels = ["MTL \\| plain", "longer", "single", "feature", "feature: its initial maps"]
    assert [row[0] for row in rows[2:]] == labels and {len(row) for row in rows} == {len(rows[0])}
    assert rows[0][1:4] == ["semseg, mIoU ↑", "height, rmse ↓", "Delta_MTL, %"]
    assert rows[2][3] == "-" and rows[5][3] == fixed(
        claim["methods"]["feature"]["delta"]["each"][0], 2, sign=True
    )

    status, _, err = dmtl(*words, "--seeds", 3, "--optim.lr", 0.5)
    assert status == 2 and err.count("\n") == 1
    assert "seed3/plain: was trained with another configuration (optim.lr was 0.001, now 0.5)" in err


@pytest.mark.slow
def test_claim_without_methods(dmtl, tmp_path, data):
    """The configuration, and its baselines at equal steps and at equal time; with the progress of each."""
    status, out, _ = dmtl("claim", "--data.root", data, *SHORT, "--seeds", 3, "--out", "claim")
    assert "claim/seed3/mtl: 2 of 2 steps, loss" in out and "claim/seed3/diffusion: 2 of 2 steps, loss" in out
    assert status == 0 and "gain over initial maps" in " ".join(out.split())
    claim = json.loads((tmp_path / "claim" / "claim.json").read_text())
    assert [run["method"] for run in claim["runs"]] == ["diffusion", "mtl", "mtl_equal_time"]
    delta = claim["methods"]["diffusion"]["delta"]
    assert delta["seeds"] == [3] and fixed(delta["each"][0], 2, sign=True) in out


@pytest.mark.slow
def test_a_stopped_claim_stops_its_runs_and_resumes(tmp_path, data):
    """SIGTERM: the run saves its state, the status says so, and the same command goes on from there."""
    words = ["claim", "--data.root", str(data), *SHORT, "--seeds", "0", "--methods", "mtl", "--out", "claim"]
    command = [sys.executable, "-m", "dmtl", *words, "--optim.steps", "1000000"]
    options = dict(cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, rows = tmp_path / "claim" / "seed0" / "mtl.log", tmp_path / "claim" / "seed0" / "mtl" / "log.jsonl"
    step = 0
    for _ in range(2):
        with subprocess.Popen(command, **options) as claim:
            try:
                while last_step(rows) <= step:
                    assert claim.poll() is None
                    time.sleep(0.1)
            finally:
                claim.send_signal(signal.SIGTERM)
            _, err = claim.communicate(timeout=600)
        assert claim.returncode == 128 + signal.SIGTERM and err.startswith("dmtl claim: stopped by SIGTERM;")
        step = last_step(rows)
    first, second = (line for line in log.read_text().splitlines() if "stopped by SIGTERM after step" in line)
    [resumed] = (line for line in log.read_text().splitlines() if line.startswith("resumed at step"))
    assert f"after step {resumed.split()[-1]} of 1000000" in first and first != second


def last_step(rows) -> int:
    """Of a run's log."""
    lines = rows.read_text().split("\n")[:-1] if rows.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_convert_there_and_back(dmtl, tmp_path):
    """A Feature-Diffusion model through the published format, bit for bit."""
    from dmtl.models import ModelConfig, create_model, from_pretrained
    from dmtl.tasks import make_task

    tasks = [make_task("semseg", classes=3).spec(), make_task("normals").spec()]
    create_model(ModelConfig(tasks=tasks, backbone_width=8, width=16)).save_pretrained(tmp_path / "ours")
    assert dmtl("convert", "ours", "official.pth.tar", "--to-official").status == 0
    status, out, _ = dmtl("convert", "official.pth.tar", "back")
    assert status == 0
    assert "S = 2" in out and "semseg (3), normals (3)" in out
    ours, back = (from_pretrained(tmp_path / name).state_dict() for name in ("ours", "back"))
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[key], back[key]) for key in ours)


def test_demo_keeps_other_folders(dmtl, tmp_path):
    """The demo neither mixes with nor deletes what is not a demo."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    for words in (["--out", "mine"], ["--out", "mine", "--overwrite"]):
        status, _, err = dmtl("demo", *words)
        assert status == 2
        assert "mine" in err and err.count("\n") == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years of work"
