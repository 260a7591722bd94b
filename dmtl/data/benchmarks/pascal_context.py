"""PASCAL-Context with five tasks as it is distributed (astmt's PASCAL_MT, ATRC's PASCALContext).

    ROOT/ImageSets/Context/{train,val}.txt      one id per line; 4,998 and 5,105 of them
    ROOT/JPEGImages/ID.jpg                      at most 500 pixels a side
    ROOT/pascal-context/trainval/ID.mat         LabelMap [H, W], 1..459: gives edges, and where normals count
    ROOT/semseg/VOC12/ID.png                    uint8 0..20, or 255; if this file is missing:
    ROOT/semseg/pascal-context/ID.png           the same values
    ROOT/human_parts/ID.mat                     PASCAL-Part: anno.objects(i).parts(j).{part_name, mask}
    ROOT/normals_distill/ID.png                 RGB, n = 2 x / 255 - 1
    ROOT/sal_distill/ID.png                     grey; salient above a half

The files ImageSets/Parts/*.txt, which other readers write, list the classes in each human_parts/ID.mat. They
are not used: this reader looks into the .mat files themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmtl.data.benchmarks.base import Distribution, unlike
from dmtl.data.benchmarks.mat import read_mat
from dmtl.data.benchmarks.pascal_classes import CONTEXT_CLASSES, HUMAN_PARTS, PERSON, WITH_NORMALS
from dmtl.data.folder.label_maps import decode_label
from dmtl.data.folder.paths import inside, read_ids
from dmtl.data.images import image_size, read_label_image
from dmtl.errors import DataError
from dmtl.metrics.morphology import outline, thin
from dmtl.tasks import Task, make_task

_HAS_NORMALS = np.isin(np.arange(CONTEXT_CLASSES + 1), WITH_NORMALS)


class PascalContext(Distribution):
    """PASCAL-Context: segmentation (21 classes), human parts (7 classes), saliency, normals and edges.

    Some labels need a definition:

        human_parts  255 everywhere in images without any annotated part of a person
        normals      known where LabelMap is one of the 170 classes shared with NYUD-v2; elsewhere black
                     (unknown in the folder format)
        edge         |Laplacian(LabelMap)| > 0 (4 neighbours, mirrored at the border), thinned

    Labels with another size than the image are resized as in the published reader. Class ids take the nearest
    pixel, as the last step. Normals are interpolated as vectors (cubic, 0 where unknown) and normalised
    again, float32. In this case only, vectors shorter than 1/2 after interpolation are unknown.

    The .mat files need scipy (extra `pascal`).
    """

    format = "pascal-context"
    evaluation = {"frame": [512, 512], "max_dist": 0.0075}
    _last: tuple[str, np.ndarray] | None = None  # id and LabelMap, which edges and normals share

    @classmethod
    def recognises(cls, root: Path) -> bool:
        names = ("JPEGImages", "ImageSets/Context", "pascal-context/trainval")
        return all((root / name).is_dir() for name in names)

    def make_tasks(self) -> dict[str, Task]:
        return {name: make_task(name) for name in ("semseg", "human_parts", "sal", "normals", "edge")}

    def image_file(self, index: int) -> Path:
        return self._file("JPEGImages", index, ".jpg")

    def stored(self, index: int, task: str) -> np.ndarray:
        size = image_size(self.image_file(index), upright=False)
        if task == "normals":
            return self._normals(index, size)
        if task == "human_parts":
            path = self._file("human_parts", index, ".mat")
            parts = _human_parts(read_mat(path, ["anno"])["anno"], path)
            return np.full(size, 255, np.uint8) if parts is None else nearest(parts, size)
        if task == "edge":
            return nearest(edges(self._label_map(index)), size)
        if task == "sal":
            return nearest(_grey(self._file("sal_distill", index, ".png")) > 127, size).astype(np.uint8)
        voc = self._file("semseg/VOC12", index, ".png")
        path = voc if voc.is_file() else self._file("semseg/pascal-context", index, ".png")
        return nearest(_grey(path), size)

    def boundaries(self, index: int) -> Tensor | None:
        """Return seg2bmap's outlines of LabelMap, bool [H, W]; None without the task edge."""
        if "edge" not in self.tasks:
            return None
        labels = nearest(self._label_map(index), image_size(self.image_file(index), upright=False))
        return torch.from_numpy(outline(labels))

    def _ids(self, split: str) -> list[str]:
        return read_ids(inside(self.root, self.root / "ImageSets" / "Context" / f"{split}.txt"))

    def _file(self, folder: str, index: int, suffix: str) -> Path:
        return inside(self.root, self.root / folder / f"{self.ids[index]}{suffix}")

    def _label_map(self, index: int) -> np.ndarray:
        """Return LabelMap, uint16 [H, W] of 0 .. 459."""
        last = self._last
        if last is None or last[0] != self.ids[index]:
            path = self._file("pascal-context/trainval", index, ".mat")
            labels = read_mat(path, ["LabelMap"])["LabelMap"]
            if not isinstance(labels, np.ndarray) or labels.ndim != 2 or not labels.size:
                raise DataError(f"{path}: LabelMap is not a map, expected numbers [H, W]")
            if not ((labels >= 0) & (labels <= CONTEXT_CLASSES) & (labels == np.floor(labels))).all():
                raise DataError(
                    f"{path}: values from {labels.min()} to {labels.max()}, "
                    f"expected LabelMap of classes 1 to {CONTEXT_CLASSES}"
                )
            self._last = last = self.ids[index], labels.astype(np.uint16)
        return last[1]

    def _normals(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Return normals, uint8 [H, W, 3], or float32 if they were resized."""
        path, labels = self._file("normals_distill", index, ".png"), self._label_map(index)
        codes = read_label_image(path)
        if codes.shape != (*labels.shape, 3):
            raise DataError(
                f"{path}: {codes.dtype} values of shape {list(codes.shape)}, expected an RGB picture of "
                f"{labels.shape[1]}x{labels.shape[0]} as its LabelMap"
            )
        known = _HAS_NORMALS[labels][..., None]
        if codes.shape[:2] == size:
            return np.where(known, codes, np.uint8(0))
        vectors = torch.from_numpy(np.where(known, codes.astype(np.float32) * (2 / 255) - 1, np.float32(0)))
        # torch's bicubic has the coefficient (-0.75), pixel centres and border of OpenCV's.
        resized = F.interpolate(vectors.permute(2, 0, 1)[None], size, mode="bicubic", align_corners=False)
        task = self.tasks["normals"]
        unit = decode_label(resized[0].permute(1, 2, 0).numpy(), task, path, numbers=True)
        return torch.where(task.valid(unit), unit, 0).permute(1, 2, 0).contiguous().numpy()


def edges(labels_HW: np.ndarray) -> np.ndarray:
    """Return the edges of a class map, uint8 [H, W] of 0 and 1.

    A pixel is an edge if the sum of its four neighbours is not four times its value; edges are then thinned.
    The border is mirrored without repeating its pixels.
    """
    around = np.pad(labels_HW.astype(np.int32), 1, mode="reflect")
    middle = around[1:-1, 1:-1]
    neighbours = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return thin(neighbours != 4 * middle).astype(np.uint8)


def nearest(map_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the map to another (height, width) as OpenCV's INTER_NEAREST does."""
    if map_HW.shape == size:
        return map_HW
    rows, columns = (
        np.minimum((np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(map_HW.shape, size)
    )
    return map_HW[rows[:, None], columns]


def _grey(path: Path) -> np.ndarray:
    """Read a grey or palette image, uint8 [H, W]."""
    pixels = read_label_image(path)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise unlike(pixels, path, "8 bits per pixel, grey or palette")
    return pixels


def _human_parts(anno: Any, path: Path) -> np.ndarray | None:
    """Paint the parts of people, later over earlier ones: uint8 [H, W], 0 to 6; None if there are none."""
    try:
        people = [thing for thing in anno[0]["objects"] if thing["class_ind"].item() == PERSON]
        masks = [_mask(person["mask"]) for person in people]
        parts = [(str(p["part_name"]), _mask(p["mask"])) for person in people for p in person["parts"]]
        if len({mask.shape for mask in [*masks, *(mask for _, mask in parts)]}) > 1:
            raise ValueError("masks of several sizes")
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: no annotation of PASCAL-Part ({type(error).__name__}: {error}), expected objects with "
            "class_ind, mask and parts, and parts with part_name and mask"
        ) from error
    if not parts or not any(mask.any() for mask in masks):
        return None
    map_HW = np.zeros(masks[0].shape, np.uint8)
    for name, mask in parts:
        if name not in HUMAN_PARTS:
            raise DataError(
                f"{path}: a part of a person named {name!r:.40}, expected one of {', '.join(HUMAN_PARTS)}"
            )
        map_HW[mask] = HUMAN_PARTS[name]
    return map_HW if map_HW.any() else None


def _mask(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2:
        raise ValueError(f"a mask of {values.ndim} dimensions")
    return values != 0
