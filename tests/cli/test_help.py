"""What a person reads before anything runs: help, version, the one line that answers a wrong command line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dmtl import __version__
from dmtl.cli import COMMANDS, main

from .conftest import environment

DATA_COMMANDS = ("check", "show", "labels", "import", "export")


@pytest.mark.parametrize(
    "words", [[c] for c in COMMANDS] + [["data", c] for c in DATA_COMMANDS], ids=" ".join
)
def test_help_of_every_command(dmtl, words):
    status, out, err = dmtl(*words, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: dmtl {' '.join(words)}")
    assert not re.search(r"\(default:\s+(│\s+│\s+)?(None)?\)", out)


def test_overview(dmtl):
    for words in ([], ["--help"], ["-h"], ["help"]):
        status, out, _ = dmtl(*words)
        assert status == 0
        assert all(f"  {name} " in out for name in COMMANDS)
        assert max(map(len, out.splitlines())) <= 100
    assert dmtl("--version").out.strip() == f"dmtl {__version__}"


def test_training_help_names_every_key(dmtl):
    """All keys of the configuration but tables of tables, which files have."""
    from dataclasses import fields

    from dmtl.models import ModelConfig
    from dmtl.train.config import DataConfig, LogConfig, OptimConfig

    out = dmtl("train", "--help").out
    sections = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "log": LogConfig}
    tables = [("model", "tasks"), ("data", "sources")]
    for section, kind in sections.items():
        for name in (f.name for f in fields(kind) if (section, f.name) not in tables):
            assert f"--{section}.{name.replace('_', '-')}" in out
    assert "model.tasks" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "--out", "x", "mine.toml"], "CONFIG must come first, got mine.toml"),
        (["train", "mine.toml"], "mine.toml: no such configuration file"),
        (["train", "--device", "tpu:0x"], 'device must be "auto", "cpu", "cuda" or "cuda:N", got \'tpu:0x\''),
        (["claim", "--seeds"], "--seeds must name at least one seed, got none"),
        (["claim", "--processes", "0"], "--processes must be at least 1, got 0"),
        (["claim", "--methods", "mlt"], "methods: no method is named 'mlt'; did you mean 'mtl'? (methods: "),
        (["claim", "--model.diffusion", "none"], "to be compared with the baseline"),
        (["demo", "--steps", "0"], "optim.steps must be at least 1"),
        (["eval"], "pass either MODEL or --from-maps, got neither"),
        (["predict"], "IMAGE must be at least one file or folder, got none"),
        (["predict", "six-tasks"], "IMAGE must be at least one file or folder, got none after six-tasks"),
        (["predict", "photos"], "photos: no such file or folder, expected an image, a video or a folder"),
        (["predict", "a.jpg", "six-tasks"], "MODEL must come before the images, got six-tasks after a.jpg"),
        (["convert", "m", "t", "--half", "--to-official"], "--half is for model folders"),
        (["report"], "RUN must name at least one run, got none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line(dmtl, tmp_path, words, expected):
    """Status 2, one line on stderr that says what is meant, nothing on stdout, nothing written."""
    status, out, err = dmtl(*words)
    assert (status, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1
    assert err.startswith("dmtl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--optim.lrr", "3"], ["--optim.lrr", "--optim.lr FLOAT"]),
        (["train", "--optim.lr", "fast"], ["--optim.lr: could not convert string to float: 'fast'"]),
        (["train", "--optim.precision", "int8"], ["'int8'", "--optim.precision", "bf16"]),
        (["train", "--data.size", "64"], ["'--data.size'", "Expected 2 values"]),
        (["train", "--optim.steps", "0"], ["optim.steps must be at least 1"]),
        (["train", "--model.width", "7"], ["model.width must be a multiple of model.heads = 4"]),
        (["predict", "model", "a.png", "--steps", "many"], ["--steps", "INT|{auto}", "'many'"]),
        (["convert", "a.pth"], ["TARGET"]),
        (["data"], ["{check, show, labels, "]),
        (["data", "chek"], ["chek", "check, show, labels"]),
        (["data", "check", "--spilts", "val"], ["--spilts", "--splits"]),
        (["info", "--verbose"], ["--verbose"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and " " not in value[0] else "",
)
def test_arguments_that_do_not_fit(dmtl, tmp_path, words, expected):
    """Status 2, the argument and what is near it on stderr, nothing on stdout, nothing written."""
    status, out, err = dmtl(*words)
    assert (status, out) == (2, "")
    assert all(text in err for text in expected)
    assert f"dmtl {words[0]}" in err
    assert list(tmp_path.iterdir()) == []


def test_interrupt(dmtl, monkeypatch):
    from dmtl.cli import info

    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "main", stop)
    assert dmtl("info") == (130, "", "dmtl info: interrupted\n")


def test_info(dmtl, monkeypatch):
    status, out, _ = dmtl("info")
    assert status == 0
    assert "q_sample" in out and "posterior_step" in out and "torch" in out
    monkeypatch.setenv("DMTL_BACKEND", "tpu")
    status, out, err = dmtl("info")
    assert (status, out) == (2, "")
    assert err == "dmtl info: DMTL_BACKEND must be one of cuda, triton, cpu, reference, got tpu\n"


@pytest.mark.parametrize("words", ["--help", "train --help", "convert --help", "info"])
def test_reader_may_leave(words):
    """`dmtl ... | head -1` ends without a complaint."""
    command = [sys.executable, "-m", "dmtl", *words.split()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as child:
        child.stdout.close()
        err = child.stderr.read()
        status = child.wait(timeout=600)
    assert err == b""
    assert status in (141, 1)  # rich ends with 1


def test_traceback_of_a_bug_is_not_hidden(monkeypatch):
    """Only errors that a user can mend become one line."""
    from dmtl.cli import info

    def wrong(arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(info, "main", wrong)
    with pytest.raises(ZeroDivisionError):
        main(["info"])
