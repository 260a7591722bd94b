"""`dmtl eval`: the published protocol, saved maps, listed images, and what is printed and written of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.diffusion import CounterNoise
from dmtl.models import ModelConfig, create_model, from_pretrained
from dmtl.models.published import TASK_ORDER, published_state
from dmtl.tasks import make_task
from tests.cli.conftest import SHORT, environment
from tests.metrics import oracles

SIZES = {"a": (36, 44), "b": (47, 30), "c": (64, 64), "d": (33, 61)}
FRAME = (64, 64)


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """A data set with the five published tasks, images of different sizes, and its published protocol."""
    root = tmp_path_factory.mktemp("eval") / "pascal"
    rng = np.random.default_rng(0)
    for id, (height, width) in SIZES.items():
        vectors = rng.normal(size=(height, width, 3)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        edge = np.zeros((height, width))
        edge[height // 2] = edge[:, width // 3] = 1
        pixels = {
            "images": rng.integers(0, 256, (height, width, 3)),
            "semseg": rng.choice([0, 3, 15, 20, 255], (height, width)),
            "human_parts": rng.integers(0, 7, (height, width)),
            "sal": rng.integers(0, 2, (height, width)),
            "edge": edge,
            "normals": np.rint((vectors + 1) * 127.5),
        }
        for name, array in pixels.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(root / name / f"{id}.png")
    (root / "splits").mkdir()
    (root / "splits" / "val.txt").write_text("\n".join(SIZES) + "\n")
    kinds = {"semseg": "classes", "human_parts": "classes", "sal": "binary", "edge": "binary"}
    described = {
        "name": "tiny-pascal",
        "tasks": {task: {"kind": kinds.get(task, "unit_vector")} for task in TASK_ORDER},
        "evaluation": {"frame": list(FRAME), "max_dist": 0.02},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return root


def published_file(path, seed=0):
    """torch.save of what the released file holds: names with DDP's prefix, moments of Adam, a scheduler."""
    torch.manual_seed(seed)
    specs = [make_task(task).spec() for task in TASK_ORDER]
    small = dict(width=16, backbone_width=4, blocks=1, mlp_ratio=2, decoder_blocks=1)
    model = create_model(ModelConfig(tasks=specs, **small))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5, weight_decay=1e-6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: (1 - epoch / 100) ** 0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    scheduler.step()
    content = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "model": {f"module.{name}": value for name, value in published_state(model).items()},
        "epoch": 99,
        "iter_count": 83299,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def official(pascal):
    return published_file(pascal.parent / "official.pth.tar")


@pytest.fixture
def score(dmtl, tmp_path):
    """score("model", ...) -> the JSON that `dmtl eval` writes, and what it prints."""

    def run(*words):
        status, out, err = dmtl("eval", *words, "--json", "figures.json")
        assert status == 0, err
        return json.loads((tmp_path / "figures.json").read_text()), out

    return run


def test_frame(score, dmtl, tmp_path, pascal, official):
    """Beside images padded by NumPy, the network called by hand, and the metrics' definitions."""
    assert dmtl("convert", official, "model").status == 0
    found, out = score("model", "--data", pascal, "--frame", *FRAME, "--precision", "fp32", "--batch-size", 3)
    model = from_pretrained(tmp_path / "model").eval()
    maps, labels = {}, {}
    for index, (id, (height, width)) in enumerate(SIZES.items()):
        top, left = (FRAME[0] - height) // 2, (FRAME[1] - width) // 2
        around = ((top, FRAME[0] - height - top), (left, FRAME[1] - width - left))
        rgb = np.asarray(Image.open(pascal / "images" / f"{id}.png")) / 255.0
        image = np.pad((rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], (*around, (0, 0)))
        image = torch.from_numpy(image).float().permute(2, 0, 1)[None]
        out_of_model = model.maps(image, noise=CounterNoise(0, torch.tensor([index]))).maps
        for task in ("semseg", "sal"):
            maps.setdefault(task, []).append(out_of_model[task][0].numpy())
            label = np.asarray(Image.open(pascal / task / f"{id}.png"))
            labels.setdefault(task, []).append(np.pad(label, around, constant_values=255))
    stacked = {task: (np.stack(maps[task]), np.stack(labels[task])[:, None]) for task in maps}
    assert found["metrics"]["semseg"]["mIoU"] == pytest.approx(
        oracles.mean_iou(*stacked["semseg"], 21)["mIoU"], rel=1e-3
    )
    expected = oracles.max_f(*stacked["sal"])
    for metric in ("maxF", "maxF_paper"):
        assert found["metrics"]["sal"][metric] == pytest.approx(expected[metric], rel=1e-3)
    assert found["protocol"]["frame"] == list(FRAME) and "frame 64x64" in " ".join(out.split())
    other, out = score("model", "--data", pascal, "--precision", "fp32")
    assert other["protocol"]["frame"] is None and "images at their own size" in " ".join(out.split())
    assert other["metrics"]["semseg"]["mIoU"] != found["metrics"]["semseg"]["mIoU"]


def test_image_larger_than_the_frame(dmtl, pascal, official):
    status, _, err = dmtl("eval", official, "--data", pascal, "--frame", 48, 64)
    assert (status, err) == (2, "dmtl eval: c: image of 64x64 pixels, expected at most 64x48, the frame\n")


def test_published_checkpoint_in_one_command(score, dmtl, pascal, official):
    """The same figures as converting first; frame, distance and protocol as the data set says."""
    found, out = score(official, "--data", pascal, "--published")
    assert found["protocol"] == {
        "data": str(pascal),
        "split": "val",
        "images": 4,
        "frame": list(FRAME),
        "boundaries": "seism",
        "max_dist": 0.02,
        "boundary_images": 4,
    }
    assert set(found["metrics"]) == {*TASK_ORDER, *(f"initial/{task}" for task in TASK_ORDER)}
    assert [found["primary"][task][0] for task in TASK_ORDER] == [
        "mIoU",
        "mIoU",
        "maxF",
        "mean",
        "odsF_seism",
    ]
    assert found["metrics"]["edge"].keys() >= {
        "odsF_seism",
        "oisF_seism",
        "AP_seism",
        "pixelF",
        "loss",
        "bce",
    }
    rows = [line for line in out.splitlines() if line.startswith("│") and line.split("│")[2].strip()]
    lines = {line.split("│")[2].split()[0]: line for line in rows}
    meanings = {"maxF": "definition", "maxF_paper": "published", "loss": "published", "bce": "definition"}
    meanings["odsF_seism"] = "published"
    assert all(word in lines[metric] for metric, word in meanings.items())
    assert "frame 64x64; boundaries: seism, max_dist 0.02" in " ".join(out.split())
    assert dmtl("convert", official, "model").status == 0
    options = ["--frame", *FRAME, "--boundaries", "seism", "--precision", "fp32"]
    assert repr(score("model", "--data", pascal, *options)[0]["metrics"]) == repr(found["metrics"])


def test_a_foreign_file_is_no_model(dmtl, tmp_path, pascal):
    torch.save({"model": {"module.fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth.tar")
    status, _, err = dmtl("eval", "other.pth.tar", "--data", pascal)
    assert status == 2 and err.startswith("dmtl eval: other.pth.tar: not a published DiffusionMTL checkpoint")


def figures(metrics):
    """What saved maps give too: no initial maps."""
    return {task: values for task, values in metrics.items() if not task.startswith("initial/")}


def same(ours, theirs, tolerance):
    assert list(ours) == list(theirs)
    for task in theirs:
        assert list(ours[task]) == list(theirs[task])
        for metric, value in theirs[task].items():
            assert ours[task][metric] == pytest.approx(value, nan_ok=True, **tolerance), (task, metric)


def test_saved_maps_score_the_same(score, pascal, official):
    """Model -> maps -> figures: equal where maps are stored exactly; probabilities in 8 bits come close."""
    options = ["--data", pascal, "--published"]
    model, _ = score(official, *options, "--save-maps", "maps", "--float-maps")
    maps, out = score("--from-maps", "maps", *options)
    same(maps["metrics"], figures(model["metrics"]), dict(rel=1e-12))
    assert maps["protocol"] == model["protocol"] | {"frame": None} and "maps on" in out
    score(official, *options, "--save-maps", "maps")
    rounded, _ = score("--from-maps", "maps", *options)
    for task in ("semseg", "human_parts", "normals"):
        assert rounded["metrics"][task] == maps["metrics"][task]
    for metric in ("odsF_seism", "oisF_seism", "AP_seism"):
        assert rounded["metrics"]["edge"][metric] == model["metrics"]["edge"][metric]
    for task, metric in (("sal", "maxF"), ("edge", "pixelF"), ("edge", "bce")):
        assert rounded["metrics"][task][metric] == pytest.approx(model["metrics"][task][metric], rel=0.02)


def test_maps_of_another_program(score, tmp_path, pascal):
    """The labels themselves as maps: everything is right."""
    for task in ("human_parts", "edge"):
        (tmp_path / "theirs" / task).mkdir(parents=True)
        for id in SIZES:
            label = np.asarray(Image.open(pascal / task / f"{id}.png"))
            name = tmp_path / "theirs" / task / id
            np.save(name.with_suffix(".npy"), label if task == "human_parts" else label / 1.0)
    found, _ = score("--from-maps", "theirs", "--data", pascal, "--boundaries", "raw", "--max-dist", 0.01)
    assert list(found["metrics"]) == ["human_parts", "edge"]
    assert found["metrics"]["human_parts"]["mIoU"] == 100
    assert found["metrics"]["edge"]["odsF_raw"] == found["metrics"]["edge"]["pixelF"] == 100
    assert (found["protocol"]["boundaries"], found["protocol"]["max_dist"]) == ("raw", 0.01)


def test_boundaries_that_the_data_set_tells_apart(score, tmp_path, pascal):
    """They are the truth of odsF; the edge label stays that of the pixels."""
    shutil.copytree(pascal, tmp_path / "data")
    described = yaml.safe_load((pascal / "dataset.yaml").read_text()) | {"boundaries": "outlines"}
    (tmp_path / "data" / "dataset.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    for folder in ("data/outlines", "theirs/edge"):
        (tmp_path / folder).mkdir(parents=True)
    for id, (height, width) in SIZES.items():
        outline = np.zeros((height, width), np.uint8)
        outline[height // 4] = 1
        Image.fromarray(outline).save(tmp_path / "data" / "outlines" / f"{id}.png")
        Image.fromarray(outline * 255).save(tmp_path / "theirs" / "edge" / f"{id}.png")
    found, _ = score("--from-maps", "theirs", "--data", "data", "--boundaries", "raw")
    assert found["metrics"]["edge"]["odsF_raw"] == 100 and found["metrics"]["edge"]["pixelF"] < 50


def test_a_thin_task_of_any_name_is_scored_as_boundaries(score, tmp_path, pascal):
    """A custom task gets odsF by the published protocol, next to edge and with its own labels."""
    shutil.copytree(pascal, tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "edge", tmp_path / "data" / "cracks")
    described = yaml.safe_load((pascal / "dataset.yaml").read_text())
    described["tasks"]["cracks"] = {"kind": "binary", "thin": True}
    (tmp_path / "data" / "dataset.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    for name, side in (("edge", 0), ("cracks", 1)):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        for id in SIZES:
            line = np.asarray(Image.open(pascal / "edge" / f"{id}.png"))
            shown = 255 * (line if side else np.roll(line, (9, 9), (0, 1)))
            Image.fromarray(shown).save(tmp_path / "theirs" / name / f"{id}.png")
    found, out = score("--from-maps", "theirs", "--data", "data", "--published")
    figures = found["metrics"]
    assert figures["cracks"]["odsF_seism"] > 95 > figures["edge"]["odsF_seism"]
    assert {task: metric for task, (metric, _, _) in found["primary"].items()} == {
        "edge": "odsF_seism",
        "cracks": "odsF_seism",
    }
    assert found["protocol"]["boundary_images"] == len(SIZES) and "boundaries: seism" in " ".join(out.split())


def test_maps_that_cannot_be_scored(dmtl, tmp_path, pascal):
    words = ("eval", "--from-maps", "maps", "--data", pascal)
    (tmp_path / "maps").mkdir()
    assert dmtl(*words)[0::2] == (
        2,
        f"dmtl eval: maps and {pascal} have no task in common (none and {', '.join(TASK_ORDER)})\n",
    )
    (tmp_path / "maps" / "sal").mkdir()
    for id, size in SIZES.items():
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "maps" / "sal" / f"{id}.png")
    assert dmtl(*words).status == 0
    Image.fromarray(np.zeros(FRAME, np.uint8)).save(tmp_path / "maps" / "sal" / "b.png")
    message = "maps/sal/b.png: values of shape [64, 64], expected [47, 30] like the image"
    assert dmtl(*words)[0::2] == (2, f"dmtl eval: {message}\n")
    (tmp_path / "maps" / "sal" / "c.png").unlink()
    (tmp_path / "maps" / "sal" / "d.png").unlink()
    message = "maps: 2 of 4 maps are missing: sal/c, sal/d, expected <task>/<id>.png or .npy"
    assert dmtl(*words)[0::2] == (2, f"dmtl eval: {message}\n")


def test_listed_images(score, dmtl, tmp_path, pascal, official):
    """Figures of an image do not depend on what is scored beside it."""
    (tmp_path / "list.txt").write_text("d\nb\n")
    options = ["--data", pascal, "--frame", *FRAME, "--batch-size", 1]
    listed, out = score(official, *options, "--ids", "list.txt")
    assert listed["protocol"]["images"] == 2 and "2 images" in out
    score(official, *options, "--save-maps", "maps", "--float-maps")
    apart, _ = score("--from-maps", "maps", "--data", pascal, "--ids", "list.txt", "--batch-size", 1)
    same(apart["metrics"], figures(listed["metrics"]), dict(rel=1e-12))
    (tmp_path / "list.txt").write_text("d\n2008_000002\n")
    status, _, err = dmtl("eval", official, *options, "--ids", "list.txt")
    told = "1 of 2 are unknown, the first is '2008_000002', expected images of tiny-pascal, split 'val'"
    assert (status, err) == (2, f"dmtl eval: ids: {told}\n")


def test_listed_boundaries(score, tmp_path, pascal, official):
    """Boundaries of some images beside pixels of all, as published for PASCAL-Context."""
    (tmp_path / "list.txt").write_text("a\nc\n")
    options = ["--data", pascal, "--published"]
    found, out = score(official, *options, "--boundary-ids", "list.txt")
    both, _ = score(official, *options, "--ids", "list.txt")
    every, _ = score(official, *options)
    assert (found["protocol"]["images"], found["protocol"]["boundary_images"]) == (4, 2)
    assert "max_dist 0.02, 2 images" in " ".join(out.split())
    same({"semseg": found["metrics"]["semseg"]}, {"semseg": every["metrics"]["semseg"]}, dict(rel=1e-12))
    for metric in ("odsF_seism", "oisF_seism", "AP_seism"):
        assert found["metrics"]["edge"][metric] == pytest.approx(both["metrics"]["edge"][metric], rel=1e-3)


def test_tables(score, tmp_path, pascal, official):
    """Classes by the names of the data set; Delta_MTL against single-task runs, by hand."""
    single = {
        "runs/semseg/eval.json": {"semseg": {"mIoU": 2.0, "pixel_acc": 1.0}, "initial/semseg": {"mIoU": 1.0}},
        "runs/normals/metrics.json": {"normals": {"mean": 100.0}, "initial/normals": {"mean": 50.0}},
        "edge.json": {"edge": {"pixelF": 20.0}, "initial/semseg": {"mIoU": 3.0}},
    }
    for name, metrics in single.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"metrics": metrics}))
    (tmp_path / "runs/semseg/metrics.json").write_text(json.dumps({"metrics": {"semseg": {"mIoU": 9.0}}}))
    options = ["--data", pascal, "--tasks", "semseg", "normals", "edge"]
    baseline = ["--baseline", "runs/semseg", "runs/normals", "edge.json"]
    found, out = score(official, *options, *baseline, "--per-class")
    m = found["metrics"]
    gains = {
        "semseg": 100 * (m["semseg"]["mIoU"] - 2) / 2,
        "normals": -100 * (m["normals"]["mean"] - 100) / 100,
        "edge": 100 * (m["edge"]["pixelF"] - 20) / 20,
    }
    assert found["delta_mtl"] == pytest.approx(sum(gains.values()) / 3)
    assert {task: gain for task, (_, _, gain) in found["baseline"].items()} == pytest.approx(gains)
    assert f"Delta_MTL against the baseline: {sum(gains.values()) / 3:+.2f} %" in out
    assert "aeroplane" in out and "tvmonitor" in out and "class 1" not in out
    assert f"{m['semseg']['IoU/person']:.2f}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["m", "--from-maps", "x"],
            "pass either MODEL or --from-maps, not both",
        ),
        (["--from-maps", "x", "--frame", 8, 8], "--frame needs a model, it cannot be used with"),
        (["--from-maps", "x", "--samples", 2], "--samples needs a model"),
        (["m", "--save-maps", "x", "--steps", 1, 2], "--save-maps needs one number of --steps, got 2"),
        (["m", "--float-maps"], "--float-maps needs --save-maps"),
        (["m", "--max-dist", 0.1], "--max-dist needs --boundaries or --published"),
        (["m", "--boundary-ids", "x"], "--boundary-ids needs --boundaries or --published"),
        (["m", "--boundaries", "raw", "--max-dist", 2], "max_dist must be a fraction of the diagonal"),
        (["nowhere.pth.tar"], "nowhere.pth.tar: no such file or folder"),
        (
            ["--from-maps", "nowhere", "--data", "scenes"],
            "nowhere: no such folder, expected one with a folder of maps for each task",
        ),
        (["m", "--baseline", "nowhere"], "baseline must be a finished run or its metrics.json: nowhere"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_options_that_cannot_work(dmtl, words, message):
    status, out, err = dmtl("eval", *words)
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_an_unknown_choice_lists_the_known_ones(dmtl):
    status, out, err = dmtl("eval", "m", "--boundaries", "bsds")
    assert (status, out) == (2, "")
    assert all(word in err for word in ("'bsds'", "--boundaries", "'raw'", "'seism'", "dmtl eval --help"))


@pytest.mark.parametrize(
    ("stored", "words", "message"),
    [
        ([{"sal": {"maxF": 1}}], ["sal", "edge"], "baseline has no pixelF of edge; first evaluate its runs"),
        (
            [{"sal": {"maxF": 1}}, {"sal": {"maxF": 2}}],
            ["sal"],
            "two runs have the task sal; the second is 1.json",
        ),
        ([{"sal": {"maxF": 1}}, {"edge": {"pixelF": 3}}], ["sal", "edge", "--published"], "no odsF_seism of"),
        ([{"sal": {"maxF": 0}}], ["sal"], "baseline: delta_mtl: reference must not be 0 for sal maxF"),
    ],
)
def test_baselines_that_cannot_be_compared(dmtl, tmp_path, pascal, official, stored, words, message):
    for number, metrics in enumerate(stored):
        (tmp_path / f"{number}.json").write_text(json.dumps({"metrics": metrics}))
    files = [f"{number}.json" for number in range(len(stored))]
    status, _, err = dmtl("eval", official, "--data", pascal, "--tasks", *words, "--baseline", *files)
    assert status == 2 and message in err and err.count("\n") == 1


def test_boundaries_need_a_thin_task(dmtl, pascal, official):
    words = ["eval", official, "--data", pascal, "--tasks", "sal"]
    message = "scoring boundaries needs a binary task with `thin: true`, such as edge, got only sal"
    assert dmtl(*words, "--boundaries", "raw")[0::2] == (2, f"dmtl eval: {message}\n")
    assert dmtl(*words, "--published").status == 0


@pytest.mark.slow
def test_processes_share_the_images(dmtl, tmp_path, pascal, official):
    words = ["eval", official, "--data", pascal, "--published", "--batch-size", 1, "--device", "cpu"]
    assert dmtl(*words, "--json", "one.json", "--save-maps", "one").status == 0
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "dmtl",
    ]
    command += [*map(str, words), "--json", "two.json", "--save-maps", "two"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("maxF_paper") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    indices = [json.loads((tmp_path / name / "maps.json").read_text()) for name in ("one", "two")]
    named = [{image["name"]: image for image in index["images"]} for index in indices]
    assert named[0] == named[1] and len(named[0]) > 1
    for file in (tmp_path / "one").rglob("*.*"):
        if file.name != "maps.json":
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_a_run_is_scored_on_its_own_data(dmtl, trained, data):
    """Not on rendered scenes; and one line says on what. Its model folder is scored alike."""
    for model in (trained, f"{trained}/model"):
        status, out, _ = dmtl("eval", model, "--json", "own.json")
        assert status == 0 and out.splitlines()[0] == f"data of {model}: {data}, split val"
    assert dmtl("eval", trained, "--data", data, "--json", "given.json").status == 0
    assert json.loads(Path("own.json").read_text()) == json.loads(Path("given.json").read_text())


def test_a_run_whose_data_are_gone(dmtl, tmp_path, data):
    shutil.copytree(data, "moved")
    assert dmtl("train", "--data.root", "moved", "--out", "run", *SHORT).status == 0
    shutil.rmtree("moved")
    told = "--data must name the data set: run/config.toml has data.root = moved, which is gone"
    assert dmtl("eval", "run/model") == (2, "", f"dmtl eval: {told}\n")
    Path("run/log.jsonl").unlink()
    assert "run/model is not a run: it has no log.jsonl" in dmtl("eval", "run/model").err


def test_a_run_on_several_data_sets_is_scored_on_all_of_them(dmtl, data):
    sources = "".join(f'[[data.sources]]\nroot = "{data}"\nname = "{name}"\n' for name in "ab")
    Path("mine.toml").write_text(sources)
    assert dmtl("train", "mine.toml", "--out", "run", *SHORT).status == 0
    status, out, _ = dmtl("eval", "run")
    assert status == 0 and "data of run: run/config.toml, split val" in out and "By source" in out


def test_a_run_on_rendered_scenes_is_scored_on_the_same_ones(dmtl):
    options = ("--data.train-count", 2, "--data.val-count", 3, "--data.labels", "full")
    assert dmtl("train", "--out", "run", *SHORT, *options).status == 0
    status, out, _ = dmtl("eval", "run", "--json", "own.json")
    assert status == 0 and "data of run: scenes, split val" in out
    scored, trained = (json.loads(Path(name).read_text()) for name in ("own.json", "run/metrics.json"))
    assert scored["protocol"]["images"] == 3
    assert scored["metrics"]["depth"] == pytest.approx(trained["metrics"]["depth"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["six-tasks"], "--data must name a data set, because six-tasks is not a run: it has no config.toml"),
        (["--from-maps", "maps"], "--from-maps needs --data, the data set to score the maps on"),
    ],
)
def test_what_is_not_a_run_needs_data(dmtl, words, message):
    assert dmtl("eval", *words) == (2, "", f"dmtl eval: {message}\n")
