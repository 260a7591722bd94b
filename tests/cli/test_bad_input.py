"""Bad input ends in status 2 and one line that names the file or the argument; nothing is half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dmtl.cli import main

from .conftest import SHORT, Result, environment


def refused(result, *words: str) -> None:
    """Status 2, one line (or the parser's message, which names --help) with all these words, no traceback."""
    status, _, err = result
    assert status == 2, result
    assert err.count("\n") == 1 or "--help" in err, err
    assert "Traceback" not in err
    for word in words:
        assert word in " ".join(err.split()), err


def overwrite(name):
    """An edit of one file of the data set."""
    return lambda function: lambda root: function(root / name)


@overwrite("images/a.png")
def truncated_image(path):
    path.write_bytes(path.read_bytes()[:400])


@overwrite("semseg/a.png")
def label_of_another_size(path):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(path)


@overwrite("semseg/a.png")
def unknown_class(path):
    Image.fromarray(np.full((36, 44), 9, np.uint8)).save(path)


@overwrite("semseg/a.png")
def coloured_label(path):
    Image.fromarray(np.zeros((36, 44, 3), np.uint8)).save(path)


@overwrite("height/a.npy")
def label_of_another_dtype(path):
    np.save(path, np.full((36, 44), "high"))


@overwrite("normals/a.png")
def label_of_another_shape(path):
    Image.fromarray(np.zeros((36, 44), np.uint8)).save(path)


@overwrite("splits/train.txt")
def id_without_image(path):
    path.write_text(path.read_text() + "nobody\n")


@overwrite("splits/train.txt")
def empty_split(path):
    path.write_text("")


@overwrite("splits/val.txt")
def missing_split(path):
    path.unlink()


@overwrite("dataset.yaml")
def unknown_kind(path):
    path.write_text("tasks: {semseg: {kind: clases, classes: [a, b]}}")


@overwrite("dataset.yaml")
def broken_yaml(path):
    path.write_text("tasks: {semseg: [")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated_image, ["images/a.png", "expected"]),
        (label_of_another_size, ["semseg/a.png", "12x10", "44x36"]),
        (unknown_class, ["semseg/a.png", "9", "expected"]),
        (coloured_label, ["semseg/a.png", "expected"]),
        (label_of_another_dtype, ["height/a.npy", "expected"]),
        (label_of_another_shape, ["normals/a.png", "expected"]),
        (id_without_image, ["splits/train.txt", "nobody", "expected"]),
        (empty_split, ["splits/train.txt", "expected"]),
        (missing_split, ["splits", "val", "train"]),
        (unknown_kind, ["dataset.yaml", "clases", "classes"]),
        (broken_yaml, ["dataset.yaml", "YAML"]),
    ],
)
def test_training_on_damaged_data(dmtl, tmp_path, folder, damage, words):
    damage(folder)
    options = [
        *SHORT,
        "--data.labels",
        "full",
        "--optim.batch-size",
        4,
    ]  # so that the first step reads everything
    refused(dmtl("train", "--data.root", folder, "--out", "run", *options), *words)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.tasks", "semsag"], ["semsag", "did you mean 'semseg'"]),
        (["--data.root", "nowhere"], ["nowhere: no such data set"]),
        (["--data.labels", "some-labels"], ["data.labels must be", "got 'some-labels'"]),
        (["--data.labels", "none.csv"], ["none.csv"]),
        (["--optim.task-weights", "semsag", "2"], ["optim.task_weights.semsag", "semseg"]),
        (["--optim.batch-size", "64"], ["batch_size = 64"]),
        (["--model.backbone", "resnet19"], ["backbone", "resnet19"]),
        (
            ["--model.diffusion", "features"],
            ["invalid choice 'features' for argument '--model.diffusion'", "features"],
        ),
        (["--data.scale", "2", "1"], ["data.scale must be"]),
    ],
    ids=lambda value: " ".join(value[:2]) if str(value[0]).startswith("--") else "",
)
def test_training_with_impossible_settings(dmtl, tmp_path, data, options, words):
    refused(dmtl("train", "--data.root", data, "--out", "run", *SHORT, *options), *words)
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[optim]\nstepz = 3\n", ["mine.toml: optim.stepz is not a known key", "did you mean 'optim.steps'"]),
        ("[optmi]\nsteps = 3\n", ["mine.toml: optmi is not a known key", "did you mean 'optim'"]),
        ("[optim]\nsteps = 'many'\n", ["mine.toml: optim.steps must be of type int, got 'many'"]),
        ("[optim\n", ["mine.toml: not valid TOML"]),
        ("data = 3\n", ["mine.toml: data must be a table"]),
        ("[data]\nsize = [3]\n", ["mine.toml: data.size must be a list of 2 values"]),
    ],
)
def test_configuration_files(dmtl, tmp_path, text, words):
    (tmp_path / "mine.toml").write_text(text)
    for command in ("train", "claim"):
        refused(dmtl(command, "mine.toml", "--out", "run"), *words)
    assert not (tmp_path / "run").exists()


def copied(trained, tmp_path):
    """A copy of a trained model's folder, to damage."""
    target = tmp_path / "copy"
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((trained / "model" / name).read_bytes())
    return target


@pytest.mark.parametrize("command", ["eval", "predict"])
@pytest.mark.parametrize(
    "damage", ["cut", "garbage", "missing", "other configuration", "unknown key", "no json"]
)
def test_damaged_models(dmtl, tmp_path, trained, data, command, damage):
    folder = copied(trained, tmp_path)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "garbage":
        weights.write_bytes(os.urandom(2000))
    elif damage == "missing":
        weights.unlink()
    elif damage == "other configuration":
        config.write_text(config.read_text().replace('"width": 8', '"width": 16'))
    elif damage == "unknown key":
        config.write_text(config.read_text().replace('"width"', '"widht"'))
    else:
        config.write_text("{")
    named = {"unknown key": "widht", "no json": "config.json", "other configuration": "shape"}
    words = ["--data", data] if command == "eval" else [data / "images"]
    refused(dmtl(command, folder, *words), "copy", named.get(damage, "model.safetensors"))


def test_data_without_the_models_tasks(dmtl, tmp_path, trained, data, folder):
    refused(dmtl("eval", trained, "--data", data, "--tasks", "depth"), "tasks must be among semseg", "depth")
    refused(dmtl("predict", trained, data / "images", "--tasks", "semsag"), "semsag", "semseg")
    (folder / "dataset.yaml").write_text("tasks: {semseg: {kind: classes, classes: [a, b]}}")
    refused(dmtl("eval", trained, "--data", folder), "'semseg'", "matched by name", "a, b")
    (folder / "dataset.yaml").write_text("tasks: {fog: {kind: scalar}}")
    refused(dmtl("eval", trained, "--data", folder), "no task in common")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_foreign_checkpoints(dmtl, tmp_path, content):
    (tmp_path / "official.pth.tar").write_bytes(content)
    refused(dmtl("convert", "official.pth.tar", "out"), "official.pth.tar", "checkpoint")
    assert not (tmp_path / "out").exists()


def test_checkpoint_with_code_inside(dmtl, tmp_path):
    """Nothing but weights is unpickled."""
    import pickle

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    (tmp_path / "evil.pth.tar").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    refused(dmtl("convert", "evil.pth.tar", "out"), "evil.pth.tar", "mkdir", "not loaded")
    assert not (tmp_path / "trapped").exists()


def test_damaged_training_checkpoint(dmtl, tmp_path, data):
    words = ["train", "--data.root", data, "--out", "run", *SHORT]
    assert dmtl(*words).status == 0
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:3000])
    refused(dmtl(*words, "--resume"), checkpoint.name)


def test_backend_that_is_not_here(dmtl, monkeypatch, trained, data):
    """An explicit choice succeeds or says why not, with every candidate's reasons."""
    monkeypatch.setenv("DMTL_BACKEND", "cuda")
    status, _, err = dmtl("eval", trained, "--data", data, "--device", "cpu")
    assert status == 2
    assert err.startswith("dmtl eval: conv3x3: backend cuda (requested by DMTL_BACKEND) cannot serve")
    assert all(f"  {name}: " in err for name in ("cuda", "triton", "cpu", "reference"))
    assert "Traceback" not in err


def test_full_disk(dmtl, tmp_path, monkeypatch, data):
    """Training that cannot write says which file, and leaves no half of one."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(
        dmtl("train", "--data.root", data, "--out", "run", *SHORT),
        "cannot write run/config.toml",
        "No space left",
    )
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data.root", "{data}", "--out", "file/run", *SHORT],
        ["predict", "{trained}", "{data}/images", "--out", "file/maps"],
        ["eval", "{trained}", "--data", "{data}", "--json", "file/x.json"],
        ["report", "{trained}", "--out", "file/page.html"],
        ["data", "labels", "{data}", "--out", "file/l.csv"],
        ["data", "show", "{data}", "--out", "file/s.png"],
        ["data", "export", "{data}", "file/copy"],
        ["convert", "{trained}", "file/x.pth.tar", "--to-official"],
        ["demo", "--out", "file/demo"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_output_below_a_file(dmtl, tmp_path, trained, data, words):
    """A target that cannot exist is named."""
    (tmp_path / "file").write_text("in the way")
    refused(dmtl(*(word.format(data=data, trained=trained) for word in words)), "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "cannot write run/best/model.safetensors"),
        pytest.param(
            ["--log.checkpoint-every", "1"],
            "cannot write run/checkpoints/step-00000001.pt: File too large; no earlier one exists",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_full_disk_while_weights_are_written(trained, data, tmp_path, options, told):
    """As above, with the writers of torch and safetensors stopped by the system in the middle of a file."""
    program = (
        "import resource, signal, sys, dmtl.cli, torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "sys.exit(dmtl.cli.main(sys.argv[1:]))\n"
    )
    words = ["train", "--data.root", str(data), "--out", "run", *SHORT, *options]
    child = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    refused(Result(child.returncode, child.stdout, child.stderr), told)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file()) == [
        "config.toml",
        "labels.csv",
        "log.jsonl",
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("command", ["eval", "report", "info"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_stream_that_lacks_characters(trained, data, tmp_path, monkeypatch, encoding, command, errors):
    """Files are written before the terminal is, and arrows that a stream cannot encode are replaced."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors)
    monkeypatch.setattr(sys, "stdout", stream)
    out = tmp_path / "out.json"
    words = {
        "eval": ["eval", str(trained), "--data", str(data), "--json", str(out)],
        "report": ["report", str(trained), "--json", str(out)],
        "info": ["info"],
    }[command]
    assert main(words) == 0
    stream.flush()
    assert len(stream.buffer.getvalue()) > 100
    assert command == "info" or json.loads(out.read_text())


@pytest.mark.parametrize("option", ["--out", "--data.root", "--data.labels"])
def test_a_path_that_is_not_text(dmtl, data, option):
    """As an ASCII locale without UTF-8 mode reads a path with accents."""
    path = os.fsdecode(b"stra\xc3\x9fe\xff")
    words = {"--data.root": data, "--data.labels": "full", "--out": "run", option: path}
    told = f"{option[2:]} is {path!r}, which is not text in this locale"
    refused(dmtl("train", *(word for pair in words.items() for word in pair), *SHORT), told)


def test_files_are_there_before_the_terminal_fails(trained, data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("no terminal")

    monkeypatch.setattr("dmtl.cli.eval.metric_table", broken)
    monkeypatch.setattr("dmtl.cli.report.metric_table", broken)
    for words in (["eval", str(trained), "--data", str(data)], ["report", str(trained)]):
        out = tmp_path / f"{words[0]}.json"
        assert main([*words, "--json", str(out)]) == 2
        assert json.loads(out.read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "show", "scenes", "--count", 0], "--count must be at least 1, got 0"),
        (["data", "check", "--workers", -1], "--workers must be at least 0, got -1"),
        (["data", "check", "--lines", -1], "--lines must be at least 0, got -1"),
        (["data", "export", "scenes", "out", "--size", 0, 64], "--size must be at least 1, got 0 64"),
        (
            ["eval", "six-tasks", "--data", "scenes", "--batch-size", 0],
            "--batch-size must be at least 1, got 0",
        ),
        (["app", "--port", 99999], "--port must be from 1 to 65535, got 99999"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_numbers_out_of_range(dmtl, tmp_path, words, told):
    refused(dmtl(*words), told)
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_data_set_are_not_overwritten(dmtl, trained, data):
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    yaml, picture = data / "dataset.yaml", next(data.rglob("*.png"))
    for words in (["data", "check", data], ["eval", trained, "--data", data], ["report", trained]):
        refused(
            dmtl(*words, "--json", yaml), f"--json: {yaml} exists and is not a .json file; choose another"
        )
    refused(dmtl("data", "show", data, "--out", picture), f"{picture} is inside the data set {data}")
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
