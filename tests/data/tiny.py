"""A benchmark as its authors might distribute it, small: what conversions and checks are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dmtl.data.benchmarks.base import Distribution
from dmtl.data.images import read_image, read_label_image, read_npy
from dmtl.tasks import make_task

HEIGHT, WIDTH = 18, 26


class Tiny(Distribution):
    """JPEG images, class ids, coded normals, depth with NaN, boundaries; one image in three has no depth."""

    format = "tiny"
    evaluation = {"frame": (32, 32), "max_dist": 0.01}

    def make_tasks(self):
        return {
            "semseg": make_task("semseg", classes=["sky", "road", "car"]),
            "normals": make_task("normals"),
            "depth": make_task("depth"),
        }

    def _ids(self, split):
        return (self.root / f"{split}.txt").read_text().split()

    def _path(self, index: int, kind: str, suffix: str) -> Path:
        return self.root / kind / f"{self.ids[index].replace('/', '-')}{suffix}"

    def image_file(self, index):
        return self._path(index, "jpg", ".JPG")

    def image(self, index):
        return read_image(self.image_file(index))

    def stored(self, index, task):
        if task == "depth":
            path = self._path(index, task, ".npy")
            return read_npy(path) if path.exists() else None
        return read_label_image(self._path(index, task, ".png"))

    def boundaries(self, index):
        return torch.from_numpy(read_label_image(self._path(index, "lines", ".png")) > 0)


def write_tiny(root: Path, train: int = 9, val: int = 3, seed: int = 0) -> Path:
    """The files of `Tiny`, with ids in subfolders."""
    rng = np.random.default_rng(seed)
    for kind in ("jpg", "semseg", "normals", "depth", "lines"):
        (root / kind).mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        ids = [f"{split}/{n:03d}" for n in range(count)]
        (root / f"{split}.txt").write_text("\n".join(ids))
        for n, name in enumerate(id.replace("/", "-") for id in ids):
            image = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((6, 7, 1)))[:HEIGHT, :WIDTH]
            Image.fromarray(image.astype(np.uint8)).save(root / "jpg" / f"{name}.JPG", "JPEG", quality=90)
            vectors = rng.normal(size=(HEIGHT, WIDTH, 3))
            vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
            vectors[0] = 0  # unknown
            for kind, pixels in {
                "semseg": rng.choice([0, 1, 2, 255], (HEIGHT, WIDTH)),
                "normals": np.rint((vectors + 1) * 127.5),
                "lines": rng.random((HEIGHT, WIDTH)) < 0.1,
            }.items():
                Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{name}.png")
            depth = rng.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32)
            depth[:2] = np.nan
            if n % 3 != 1:
                np.save(root / "depth" / f"{name}.npy", depth)
    return root
