"""A tiny data set on disk, runs trained on it, and the command line as a function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dmtl
from dmtl.cli import main

HEIGHT, WIDTH = 36, 44
TASKS = {
    "semseg": {"kind": "classes", "classes": ["sky", "ground", "house"]},
    "normals": {"kind": "unit_vector"},
    "cracks": {"kind": "binary"},
    "height": {"kind": "scalar"},
}
NETWORK = [
    *[
        "--model.backbone",
        "resnet18",
        "--model.backbone-width",
        "8",
        "--model.width",
        "8",
        "--model.heads",
        "2",
    ],
    *["--model.token-reduction", "4", "--data.size", "32", "32", "--optim.backbone-weights"],
    "",
]
SHORT = [
    *NETWORK,
    *["--optim.steps", "2", "--optim.batch-size", "2", "--optim.warmup", "0", "--log.every", "1"],
]


class Result(NamedTuple):
    """What a command left: its exit status and the text on both streams."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are faster on one thread, and the tests share their machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def environment() -> dict[str, str]:
    """For a child process that must find this dmtl wherever it runs."""
    return os.environ | {"PYTHONPATH": str(Path(dmtl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(name="dmtl")
def _dmtl(capsys, tmp_path, monkeypatch):
    """`dmtl("train", "--out", path)` runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit:  # --help
            status = exit.code
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set of its own for a test that damages it."""
    write_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A sound data set that nobody changes."""
    root = tmp_path_factory.mktemp("cli") / "data"
    write_data(root)
    return root


@pytest.fixture(scope="session")
def trained(data) -> Path:
    """A finished DiffusionMTL run."""
    return train(data, "diffusion")


@pytest.fixture(scope="session")
def baseline(data) -> Path:
    """A finished run of the baseline on the same labels."""
    return train(data, "mtl", "--model.diffusion", "none")


def train(data: Path, name: str, *options: str) -> Path:
    out = data.parent / name
    assert main(["train", "--data.root", str(data), "--out", str(out), *SHORT, *options]) == 0
    return out


def write_data(root: Path) -> None:
    """Four training images and two for validation, every label present, in all four kinds."""
    rng = np.random.default_rng(0)
    ids = {"train": ["a", "b", "c", "d"], "val": ["e", "f"]}
    for name in ("images", "splits", *TASKS):
        (root / name).mkdir(parents=True)
    for split, names in ids.items():
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for id in names:
            normals = rng.normal(size=(HEIGHT, WIDTH, 3))
            normals /= np.linalg.norm(normals, axis=2, keepdims=True)
            pixels = {
                "images": rng.integers(0, 256, (HEIGHT, WIDTH, 3)),
                "semseg": rng.integers(0, 3, (HEIGHT, WIDTH)),
                "normals": np.rint((normals + 1) * 127.5),
                "cracks": rng.integers(0, 2, (HEIGHT, WIDTH)),
            }
            for name, array in pixels.items():
                Image.fromarray(array.astype(np.uint8)).save(root / name / f"{id}.png")
            np.save(root / "height" / f"{id}.npy", rng.random((HEIGHT, WIDTH)).astype(np.float32))
    (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "tiny", "tasks": TASKS}, sort_keys=False))
