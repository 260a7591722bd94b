"""A folder of ten small images with three tasks, and runs on it that take a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.models import ModelConfig
from dmtl.ops import checks
from dmtl.train.config import DataConfig, ExecutionConfig, LogConfig, OptimConfig, RunConfig

TASKS = {
    "semseg": {"kind": "classes", "classes": ["sky", "road", "car"]},
    "edge": {"kind": "binary"},
    "heat": {"kind": "scalar", "scale": 0.01},
}


def refuse_readings(monkeypatch) -> None:
    """Makes every reading of a tensor by the host an error; on a GPU each would wait for the device."""
    monkeypatch.setattr(checks, "check_values", lambda *_: None)  # reads CPU tensors alone

    def refuse(name):
        def reading(self, *_):
            raise AssertionError(f"Tensor.{name} inside a training step")

        return reading

    for name in ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse(name))


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Eight training and two validation images of 32x32, every label on disk."""
    return write_images(tmp_path_factory.mktemp("images"))


def write_images(root: Path) -> Path:
    """Write the data set of `images`."""
    for number in range(10):
        rng = np.random.default_rng(number)
        value = np.clip(np.linspace(0, 255, 32)[None, :, None] + rng.normal(0, 20, (32, 32, 3)), 0, 255)
        files = {
            "images": value.astype(np.uint8),
            "semseg": (value[..., 0] // 86).astype(np.uint8),
            "edge": (rng.random((32, 32)) < 0.1).astype(np.uint8),
            "heat": (value[..., 1] * 10).astype(np.uint16),
        }
        for folder, pixels in files.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"i{number}.png")
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("".join(f"i{n}\n" for n in range(8)))
    (root / "splits" / "val.txt").write_text("i8\ni9\n")
    (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "tiny", "tasks": TASKS}, sort_keys=False))
    return root


def small_run(images: Path, out: Path, *, data={}, model={}, optim={}, execution={}, log={}) -> RunConfig:
    """Six steps on the folder of images; the dictionaries replace single values."""
    return RunConfig(
        out=str(out),
        device="cpu",
        data=DataConfig(
            **(dict(root=str(images), size=(32, 32), labels="random-labels", scale=(0.8, 1.2)) | data)
        ),
        model=ModelConfig(**(dict(width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1) | model)),
        optim=OptimConfig(**(dict(steps=6, batch_size=4, warmup=2, seed=3) | optim)),
        execution=ExecutionConfig(**execution),
        log=LogConfig(**(dict(every=1, eval_every=3, checkpoint_every=2) | log)),
    )


@pytest.fixture
def config_for(images, tmp_path):
    """config_for("name", optim=dict(...), ...) -> a configuration whose run goes to tmp_path/name."""
    return lambda name="run", **options: small_run(images, tmp_path / name, **options)


@pytest.fixture(autouse=True)
def _exact(one_thread):
    """Bit-equal results need a fixed number of threads; a deterministic run leaves its switch on."""
    yield
    torch.use_deterministic_algorithms(False)


def without_time(rows: list[dict]) -> list[dict]:
    """Log rows without what two runs may not share."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited")} for row in rows]
