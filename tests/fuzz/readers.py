"""What is fuzzed: every public reader of files, and valid files for it to begin with."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

from dmtl.data.benchmarks.detect import distribution
from dmtl.data.benchmarks.mat import read_mat
from dmtl.data.folder.dataset import Folder
from dmtl.data.folder.description import read_task
from dmtl.data.folder.label_maps import read_label
from dmtl.data.folder.manifest import digest_of, read_manifest
from dmtl.data.folder.paths import read_ids
from dmtl.data.images import read_image, read_label_image, read_npy
from dmtl.data.imports import Options, read_source
from dmtl.data.imports.format import Context
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.labels.published import read_split_table
from dmtl.data.shards.dataset import Shards
from dmtl.data.shards.index import scan
from dmtl.data.shards.member import Member, Shard
from dmtl.data.shards.write import export_shards
from tests.data.annotations import WRITERS
from tests.fixtures import write_fixture
from tests.fuzz.mutate import annotation, mutate, png, zipped
from tests.fuzz.pictures import (
    IDS,
    PIXELS,
    avifs,
    bitmaps,
    deep_grey,
    heics,
    image,
    jpegs,
    label_pngs,
    label_tiffs,
    pngs,
    tiffs,
    webps,
)

TASKS = {
    "semseg": {"kind": "classes", "classes": ["sky", "road", "car"], "ignore": 255},
    "edge": {"kind": "binary", "weight": 50.0, "values": {0: 0, 1: 1, 254: 255}},
    "normals": {"kind": "unit_vector"},
    "depth": {"kind": "scalar", "scale": 0.01, "unknown": -1},
}


@dataclass(frozen=True)
class Reader:
    """prepare(folder) writes valid files and returns those to damage; read(path) reads one, or with it all
    that belong together; an error's message begins with names(path). `valid`: before damage it is read.
    `memory`: address space that reading may take."""

    prepare: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    damage: Callable[[Random, bytes, bytes], bytes] = mutate
    names: Callable[[Path], Path] = lambda path: path
    valid: bool = True
    memory: int = 1 << 30


def files(contents: Callable[[], dict[str, bytes]]) -> Callable[[Path], list[Path]]:
    """Files that are read one by one."""

    def prepare(folder: Path) -> list[Path]:
        for name, content in contents().items():
            (folder / name).write_bytes(content)
        return sorted(folder.iterdir())

    return prepare


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return stream.getvalue()


def arrays() -> dict[str, bytes]:
    return {
        "f4.npy": npy(PIXELS[:, :, 0].astype(np.float32)),
        "f8.npy": npy(np.asfortranarray(PIXELS / 255)),
        "u1.npy": npy(IDS, (2, 0)),
        "big.npy": npy(IDS.astype(">i8")),
        "bool.npy": npy(IDS > 1),
    }


def label_files() -> dict[str, bytes]:
    vectors = PIXELS.astype(np.float32) - 127
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    ids, strips, numbers = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(IDS).save(ids, "PNG")
    colours = np.uint8(COLOURS)[IDS % 2]
    coloured = io.BytesIO()
    Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE).save(coloured, "PNG")
    Image.fromarray(IDS).save(strips, "TIFF", compression="tiff_lzw")
    Image.fromarray(PIXELS[:, :, 0] / np.float32(100)).save(numbers, "TIFF")
    return {
        "semseg.png": ids.getvalue(),
        "semseg.tif": strips.getvalue(),
        "depth.tif": numbers.getvalue(),
        "edge.npy": npy(IDS > 1),
        "normals.png": image("RGB"),
        "normals.npy": npy(vectors),
        "depth.png": deep_grey(),
        "depth.npy": npy(np.uint16(PIXELS[:, :, :1])),
        "colours.png": coloured.getvalue(),
        "colours.npy": npy(colours),
    }


COLOURS = [[0, 0, 0], [128, 0, 0]]
READ = {
    name: read_task(name, options, Path("dataset.yaml"))
    for name, options in {**TASKS, "colours": {"kind": "binary", "colors": COLOURS}}.items()
}


def label(path: Path):
    task, reading = READ[path.stem]
    return read_label(path, task, **(reading if path.suffix != ".tif" else {}))


def mats() -> dict[str, bytes]:
    from scipy.io import savemat

    part = np.zeros((1, 2), [("part_name", object), ("mask", object)])
    part[0] = [("head", IDS), ("torso", IDS)]
    person = np.zeros((1, 1), [("class", object), ("class_ind", object), ("mask", object), ("parts", object)])
    person[0, 0] = ("person", 15, IDS, part)
    person_of = np.zeros((1, 1), [("imname", object), ("objects", object)])
    person_of[0, 0] = ("2008_000003", person)
    made = {}
    for name, values in (("map", {"LabelMap": IDS.astype(np.uint16)}), ("parts", {"anno": person_of})):
        for compress in (False, True):
            stream = io.BytesIO()
            savemat(stream, values, do_compression=compress)
            made[f"{name}-{compress}.mat"] = stream.getvalue()
    return made


def tables() -> dict[str, bytes]:
    labels = LabelMatrix.random_labels([f"city/{n:03d}" for n in range(12)], list(TASKS), 0)
    rows = "\n".join(
        f"{i}," + ",".join(str(int(on)) for on in row) for i, row in zip(labels.ids, labels.matrix)
    )
    quoted = "\n".join(
        f'"{i}",' + ",".join(f'"{on:d}"' for on in row) for i, row in zip("abc", labels.matrix)
    )
    head = ",".join(["id", *labels.tasks])
    return {
        "plain.csv": f"{head}\n{rows}\n".encode(),
        "quoted.csv": f"\ufeff{head}\r\n{quoted}\r\n".encode(),
    }


class Evil:
    """Unpickled, it would leave a trace that the worker hears of."""

    def __reduce__(self):
        return os.system, ("true",)


def splits() -> dict[str, bytes]:
    """All published formats, and pickles that would run code."""
    weights = {"labels_weights": torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]]).float()}
    by_image = {np.str_(f"2008_{n:06d}"): [int(n % 5 == k) for k in range(5)] for n in range(6)}
    by_task = {task: [np.str_(f"2008_{n:06d}") for n in range(k, 6, 2)] for k, task in enumerate(TASKS)}
    made = {"lists.npy": npy(np.array(by_task, dtype=object))}
    made["older.npy"] = made["lists.npy"][:128] + pickle.dumps(np.array(by_task, dtype=object), 3).replace(
        b"numpy._core.", b"numpy.core."
    )
    for name, value in (("weights", weights), ("images", by_image), ("tasks", by_task)):
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=new)
            made[f"{name}-{new}.pth"] = stream.getvalue()
    return made | {"table.csv": tables()["plain.csv"]}


def evil_splits() -> dict[str, bytes]:
    """The same with a call of os.system in place of one value: refused as they are."""
    former = io.BytesIO()
    torch.save({"labels_weights": [Evil()]}, former, _use_new_zipfile_serialization=False)
    new = io.BytesIO()
    torch.save({"a": [Evil(), 1]}, new)
    return {
        "former.pth": former.getvalue(),
        "new.pth": new.getvalue(),
        "object.npy": npy(np.array({"semseg": ["a", Evil()]}, dtype=object)),
    }


# Several files that belong together: they stand in folder/set.


def root_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "set")


def data_set(folder: Path) -> list[Path]:
    """A data set in the folder format, with a label table, a manifest and one image in a subfolder."""
    root = folder / "set"
    for id in ("a", "city/b"):
        contents = {"images.png": image("RGB"), **label_files()}
        for name in ("images.png", "semseg.png", "edge.npy", "normals.png", "depth.png"):
            path = root / Path(name).stem / (id + Path(name).suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[name])
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("a\ncity/b\n")
    (root / "splits/val.txt").write_text("a\n")
    (root / "labels.csv").write_text("id,semseg,edge,normals,depth\na,1,0,1,1\ncity/b,0,1,1,0\n")
    (root / "dataset.yaml").write_text(
        yaml.safe_dump({"name": "small", "tasks": TASKS, "labels": "labels.csv"})
    )
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def read_folder(path: Path) -> None:
    for split in ("train", "val"):
        data = Folder(root_of(path), split)
        for index in range(len(data)):
            data.read(index)


def shards(folder: Path) -> list[Path]:
    """The same data set in shards, with their indices."""
    data_set(folder / "from")
    root = folder / "set"
    for split in ("train", "val"):
        export_shards(Folder(folder / "from" / "set", split), root / split, 1)
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def read_shards(path: Path) -> None:
    with mock.patch("dmtl.data.shards.index.write_index"):  # of a tar that has another size now
        for split in ("train", "val"):
            data = Shards(str(root_of(path) / split / "{000000..000000}.tar"), split)
            for index in range(len(data)):
                data.read(index)


def tars() -> dict[str, bytes]:
    """In all forms, with long names and attributes."""
    made = {}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers={"comment": "all"}) as tar:
            for name in ("a.png", "a.sal.png", f"{'city/' * 20}{'b' * 90}.png"):
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = 600, {"mtime": "1.5", "comment": "é" * 300}
                tar.addfile(info, io.BytesIO(bytes(600)))
        made[f"{form}.tar"] = stream.getvalue()
    return made


def read_tar(path: Path) -> None:
    shard = Shard.of(str(path))
    for name, offset, size in scan(shard):
        Member(shard, name, offset, size).read_bytes()


def manifest(folder: Path) -> list[Path]:
    root = folder / "set"
    root.mkdir()
    lines = [
        json.dumps({"id": id, "split": "train", "files": {f"images/{id}.png": digest_of(image("RGB"))}})
        for id in ("a", "city/b", "c")
    ]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return [root / "manifest.jsonl"]


def fixture(format: str, folder: Path) -> list[Path]:
    root = write_fixture(format, folder / "set", train=1, val=1, size=(16, 24))
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def read_benchmark(format: str, path: Path) -> None:
    for split in ("train", "val"):
        distribution(format.removesuffix("-mt"))(root_of(path), split).read(0)


def read_description(path: Path) -> Folder:
    """With the tasks that it speaks of."""
    return Folder(path.parent, "val")


def description(folder: Path) -> list[Path]:
    return [path for path in data_set(folder) if path.name == "dataset.yaml"]


LAUGHS = "\n".join(f" - &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))
MERGES = "\n".join(f" - &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))


def evil_descriptions(folder: Path) -> list[Path]:
    """Code, references that unfold without end, numbers and lists without end."""
    texts = {
        "code": "tasks: !!python/object/apply:os.system ['true']\n",
        "laughs": f"description:\n - &a0 [x, x]\n{LAUGHS}\ntasks: {{semseg: *a39}}\n",
        "name": f"description:\n - &a0 [x, x]\n{LAUGHS}\nname: *a39\ntasks: {{edge: {{kind: binary}}}}\n",
        "merges": f"description:\n - &a0 {{x: 1}}\n{MERGES}\ntasks: *a39\n",
        "deep": "tasks: " + "[" * 1000,
        "classes": "tasks: {mine: {kind: classes, classes: 999999999999}}",
        "long": "tasks: {depth: {kind: scalar, scale: 1" + "0" * 400 + "}}",
        "keys": "tasks: {edge: {kind: binary, colors: {[[0]]: 1, {a: b}: 2}}}",
        "twice": "tasks: {edge: {kind: binary}, edge: {kind: binary}}",
        "heavy": "tasks: {edge: {kind: binary, weight: 1" + "0" * 400 + "}}",
    }
    made = []
    for name, text in texts.items():
        made += description(folder / name)
        made[-1].write_text(text)
    return made


class Annotations:
    """Files of an annotation tool, and the masks that belong to them; images are damaged elsewhere."""

    def __init__(self, format: str):
        self.format = format

    def prepare(self, folder: Path) -> list[Path]:
        made = WRITERS[self.format](folder / "set")
        self.source = made.pop("source")
        self.options = Options(**made)
        files = [path for path in sorted((folder / "set").rglob("*")) if path.is_file()]
        return [path for path in files if path.suffix != ".png" or path.parent.name in MASKS]

    def read(self, path: Path) -> None:
        context = Context(known={}, may_lack=0, scratch=path.parent)
        for data in read_source(self.format, self.source, self.options, context).splits.values():
            for index in range(len(data)):
                data.read(index)


MASKS = ("panoptic", "stuff_pixelmaps", "SegmentationClass")
IMPORTS = {
    f"import-{format}": Reader(made.prepare, made.read, annotation, root_of)
    for format in WRITERS
    if format != "huggingface"  # which its own library reads
    for made in (Annotations(format),)
}
VECTORS = 2 << 30  # of 64 million pixels they are 768 MB, and twice that while they are made

READERS = {
    "png": Reader(files(lambda: pngs("RGB", "L", "P", "1", "RGBA", "LA")), read_image, png),
    "png-map": Reader(files(label_pngs), read_label_image, png),
    "jpeg": Reader(files(jpegs), read_image),
    "webp": Reader(files(webps), read_image),
    "tiff": Reader(files(tiffs), read_image),
    "tiff-map": Reader(files(label_tiffs), read_label_image),
    "bitmap": Reader(files(bitmaps), read_image),
    "avif": Reader(files(avifs), read_image),
    **({"heic": Reader(files(heics), read_image)} if find_spec("pillow_heif") else {}),
    "npy": Reader(files(arrays), read_npy),
    "label": Reader(files(label_files), label, png, memory=VECTORS),
    "mat": Reader(files(mats), lambda path: read_mat(path, ["anno" if "parts" in path.name else "LabelMap"])),
    "csv": Reader(files(tables), LabelMatrix.read_csv),
    "split": Reader(files(splits), read_split_table, zipped),
    "evil-split": Reader(files(evil_splits), read_split_table, zipped, valid=False),
    "dataset.yaml": Reader(description, read_description, names=root_of),
    "evil-dataset.yaml": Reader(evil_descriptions, read_description, names=root_of, valid=False),
    "folder": Reader(data_set, read_folder, png, root_of, memory=VECTORS),
    "shards": Reader(shards, read_shards, names=root_of, memory=VECTORS),
    "tar": Reader(files(tars), read_tar),
    "ids": Reader(files(lambda: {"train.txt": b"a\ncity/b\n2008_000003\n\n0001\n"}), read_ids),
    **IMPORTS,
    "manifest": Reader(manifest, lambda path: read_manifest(path.parent)),
    **{
        name: Reader(partial(fixture, name), partial(read_benchmark, name), png, root_of, memory=VECTORS)
        for name in ("pascal-context", "nyud-13", "nyud-40", "nyud-40-mt", "cityscapes-7", "cityscapes-19",
                     "cityscapes-raw")
    },
}  # fmt: skip
