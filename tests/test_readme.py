"""The README's Python runs as printed, its five steps work on a tiny data set, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmtl.cli import COMMANDS, main
from dmtl.train.toml import read_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = "--model.width 8 --model.heads 2 --model.backbone-width 8 --optim.steps 1 --optim.batch-size 2"


def blocks(language: str, section: str = "") -> list[str]:
    """Code blocks of one language, of the whole README or of the section with this title."""
    text = README if not section else README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(section: str = "") -> list[list[str]]:
    """The words of every `dmtl` command line in shell blocks, comments left out."""
    lines = [line for block in blocks("sh", section) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dmtl ")]


def test_python_in_a_few_lines(tmp_path, monkeypatch, one_thread):
    """Train, load, predict, evaluate."""
    example, _ = blocks("python", "Python")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save("street.jpg")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["maps"]["semseg"].shape == names["maps"]["depth"].shape == (40, 48)
    assert "odsF_seism" in names["metrics"]["edge"] and names["metrics"]["depth"]["rmse"] > 0


def test_python_training_loop(tmp_path, monkeypatch, one_thread):
    _, example = blocks("python", "Python")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    maps = names["maps"]
    assert maps["semseg"].shape == maps["depth"].shape == names["logits"][:, 0].shape == (8, 96, 96)
    assert maps["semseg"].dtype == torch.int64 and maps["depth"].dtype == torch.float32
    assert names["loss"].isfinite() and all(part.isfinite() for part in names["parts"].values())
    assert all(x["step"] > 0 for x in names["optimizer"].state.values()) and names["optimizer"].state
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_five_steps(tmp_path, monkeypatch, one_thread):
    """The folder that the README describes, its dataset.yaml, and its commands with a smaller network."""
    monkeypatch.chdir(tmp_path)
    section = "Your own images in five steps"
    [description] = blocks("yaml", section)
    write_data(tmp_path / "my-data", description)
    for _, *words in commands(section):
        if words[0] == "train":
            words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
            words += f"--data.size 32 32 {TINY}".split()
        assert main(words) == 0, words
    for task in ("semseg", "cracks", "height"):
        assert {path.stem for path in (tmp_path / "maps" / task).glob("*.png")} == {
            "0001",
            "0002",
            "0003",
            "0004",
        }
    assert (tmp_path / "samples.png").is_file()
    assert (tmp_path / "maps" / "maps.json").is_file()


def write_data(root: Path, description: str) -> None:
    """Three images with one label each, as the README's listing has them; the validation image has all."""
    rng = np.random.default_rng(0)
    for folder in ("images", "semseg", "cracks", "height", "splits"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.yaml").write_text(description)
    (root / "splits" / "train.txt").write_text("0001\n0002\n0003\n")
    (root / "splits" / "val.txt").write_text("0004\n")
    for id in ("0001", "0002", "0003", "0004"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(root / "images" / f"{id}.jpg")
    for id in ("0001", "0004"):
        Image.fromarray(rng.integers(0, 3, (40, 48)).astype(np.uint8)).save(root / "semseg" / f"{id}.png")
    for id in ("0002", "0004"):
        Image.fromarray(rng.integers(0, 2, (40, 48)).astype(np.uint8)).save(root / "cracks" / f"{id}.png")
    for id in ("0003", "0004"):
        height = np.where(rng.random((40, 48)) < 0.1, -1, rng.random((40, 48)))
        np.save(root / "height" / f"{id}.npy", height.astype(np.float32))


def test_commands_are_listed():
    table = README.split("\n## Commands\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `dmtl (\w+)", table, re.MULTILINE)) == sorted(COMMANDS)
    assert {words[1] for words in commands()} <= set(COMMANDS)


def test_named_options_and_files_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert target in targets
    for path in re.findall(r"configs/[\w-]+\.toml", README):
        read_config(ROOT / path)
    setup = (ROOT / "setup.py").read_text() + (ROOT / "dmtl" / "ops" / "registry.py").read_text()
    for variable in set(re.findall(r"`(DMTL_[A-Z]+(?:_ARCHS)?)`", README)):
        assert variable in setup
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!http|#)([^)\s]+)\)", text):
            assert link == "docs/report.png" or (ROOT / link).exists(), f"{document}: {link}"


def test_options_of_the_prose(capsys):
    """`--some.option` in inline code is an option of `dmtl train`, or of another command."""
    known = set()
    for command in ("train", "eval", "predict", "convert", "report", "info", "claim"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known |= set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    used = {
        option
        for code in re.findall(r"`([^`\n]+)`", README)
        for option in re.findall(r"--[a-z][\w.-]+", code)
    }
    assert used - {"--key"} <= known
