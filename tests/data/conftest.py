"""A small data set in the folder format, with one task of each kind and labels that are partly missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.data.base import LabelledImages, Sample
from dmtl.tasks import make_task

HEIGHT, WIDTH = 24, 32
TASKS = {
    "semseg": {"kind": "classes", "classes": ["sky", "road", "car"], "ignore": 255},
    "edge": {"kind": "binary"},
    "normals": {"kind": "unit_vector"},
    "depth": {"kind": "scalar", "scale": 0.01},
    "cracks": {"kind": "binary", "thin": True},
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    """Pixels of one sample as they are stored."""
    rng = np.random.default_rng(seed)
    binary = (rng.random((HEIGHT, WIDTH)) < 0.1).astype(np.uint8)
    vector = rng.normal(size=(HEIGHT, WIDTH, 3))
    vector /= np.linalg.norm(vector, axis=2, keepdims=True)
    return {
        "images": rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
        "semseg": np.where(
            rng.random((HEIGHT, WIDTH)) < 0.1, 255, rng.integers(0, 3, (HEIGHT, WIDTH))
        ).astype(np.uint8),
        "edge": binary,
        "normals": np.rint((vector + 1) * 127.5).astype(np.uint8),
        "depth": rng.integers(0, 1000, (HEIGHT, WIDTH)).astype(np.uint16),
        "cracks": binary.T.copy().reshape(HEIGHT, WIDTH),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ids a, b, c/d; `a` lacks depth and `b` lacks semseg. Splits: train = all three, val = a."""
    for number, id in enumerate(["a", "b", "c/d"]):
        for name, pixels in arrays(number).items():
            if (id, name) in (("a", "depth"), ("b", "semseg")):
                continue
            path = tmp_path / name / f"{id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a\nb\nc/d\n")
    (tmp_path / "splits" / "val.txt").write_text("a\n")
    describe(tmp_path)
    return tmp_path


def describe(root: Path, **changes) -> None:
    """Writes dataset.yaml with top-level keys replaced by `changes`."""
    (root / "dataset.yaml").write_text(yaml.safe_dump({"name": "small", "tasks": TASKS, **changes}))


class Synthetic(LabelledImages):
    """A data set in memory that remembers every label it was asked for."""

    def __init__(self, count: int = 20, sizes=((24, 32),), tasks=("semseg", "edge", "normals", "depth")):
        options = {"semseg": {"classes": ["a", "b", "c"]}}
        made = {t: make_task(t, **options.get(t, {})) for t in tasks}
        super().__init__("synthetic", "train", made, [f"i{n:03d}" for n in range(count)])
        self.sizes, self.asked = sizes, []

    def read(self, index, tasks=None) -> Sample:
        tasks = self.wanted(tasks)
        self.asked += [(index, task) for task in tasks]
        g = torch.Generator().manual_seed(index)
        h, w = self.sizes[index % len(self.sizes)]
        image = torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8)
        normals = torch.nn.functional.normalize(torch.randn(3, h, w, generator=g), dim=0)
        normals[:, :2, :2] = 255
        every = {
            "semseg": torch.randint(0, 3, (1, h, w), generator=g, dtype=torch.uint8),
            "edge": (torch.rand(1, h, w, generator=g) < 0.1).to(torch.uint8),
            "normals": normals,
            "depth": torch.where(
                torch.rand(1, h, w, generator=g) < 0.1, 255.0, 1 + 9 * torch.rand(1, h, w, generator=g)
            ),
        }
        return Sample(self.ids[index], image, {task: every[task] for task in tasks})


@pytest.fixture
def synthetic() -> Synthetic:
    return Synthetic()
