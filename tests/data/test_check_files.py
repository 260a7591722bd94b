"""What `check_files` finds in a folder that was converted and then suffered."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmtl.data.folder import images
from dmtl.data.folder.check import check_dataset
from dmtl.data.folder.check_files import check_files, readable_part
from dmtl.data.folder.write import export_folder
from tests.data.tiny import Tiny, write_tiny


@pytest.fixture
def root(tmp_path) -> Path:
    write_tiny(tmp_path / "source", train=4, val=2)
    for split in ("train", "val"):
        export_folder(Tiny(tmp_path / "source", split), tmp_path / "root")
    return tmp_path / "root"


def found(root: Path, **options) -> list[tuple[str, str, str]]:
    """(kind, path below the root, sentence) of every problem."""
    return [(p.kind, str(Path(p.where).relative_to(root)), p.what) for p in check_files(root, **options)]


def read_all(root: Path) -> dict[str, tuple[int, str]]:
    """What a check of the samples knows of the files."""
    files: dict[str, tuple[int, str]] = {}
    for split in ("train", "val"):
        check_dataset(readable_part(root, split), files=files)
    return files


class Openings:
    """Counts, while it is entered, how often each file below a folder is opened, by whomever."""

    def __init__(self, root: Path):
        self.root, self.count, self.counting = str(root), Counter(), False
        sys.addaudithook(self._heard)  # it stays until the interpreter ends

    def __enter__(self) -> Counter:
        self.counting = True
        return self.count

    def __exit__(self, *_) -> None:
        self.counting = False

    def _heard(self, event: str, arguments: tuple) -> None:
        if self.counting and event == "open" and str(arguments[0]).startswith(self.root):
            self.count[str(Path(arguments[0]).relative_to(self.root))] += 1


def test_every_file_is_opened_and_decoded_once(root, monkeypatch):
    """By the checks of samples and of files together, of a folder with boundaries."""
    decoded = Counter()
    decode, load = images._decode, np.load

    def counted(path, function):
        decoded[str(Path(path).relative_to(root))] += 1
        return decode(path, function)

    def counted_load(*arguments, **options):
        decoded["arrays"] += 1
        return load(*arguments, **options)

    monkeypatch.setattr(images, "_decode", counted)
    monkeypatch.setattr(np, "load", counted_load)
    with Openings(root) as opened:
        assert check_files(root, known=read_all(root)) == []
    pictures = {
        f"{folder}/{p.stem}" for folder in ("train", "val") for p in (root / "images" / folder).iterdir()
    }
    names = [f"{kind}/{id}.png" for kind in ("semseg", "normals", "boundaries") for id in pictures]
    names += [f"images/{id}.jpg" for id in pictures]
    depths = [str(p.relative_to(root)) for p in (root / "depth").rglob("*.npy")]
    assert len(pictures) == 6 and len(depths) == 4
    assert {name: opened[name] for name in names + depths} == dict.fromkeys(names + depths, 1)
    assert decoded == {**dict.fromkeys(names, 1), "arrays": 4}
    assert opened["manifest.jsonl"] == 1


def test_a_fresh_conversion_is_sound(root):
    assert check_files(root) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_difference_from_the_manifest_is_named(root, workers):
    """Missing, longer, changed in one bit, and extra."""
    (root / "depth" / "train" / "000.npy").unlink()
    with open(root / "semseg" / "train" / "001.png", "ab") as file:
        file.write(b"more")
    size = (root / "semseg" / "train" / "001.png").stat().st_size
    image = root / "images" / "val" / "001.jpg"
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    (root / "depth" / "train" / "001.npy").write_bytes(b"new")
    expected = [
        ("manifest", "depth/train/000.npy", "is missing, expected it as converted"),
        ("manifest", "semseg/train/001.png", f"has {size} bytes, expected {size - 4} as converted"),
        ("manifest", "images/val/001.jpg", "has another SHA-256, expected the bytes that were converted"),
        ("manifest", "depth/train/001.npy", "is not in manifest.jsonl, expected only what was converted"),
    ]
    assert found(root, workers=workers) == expected
    assert found(root, workers=workers, known=read_all(root)) == expected


def test_lists_and_files_must_agree(root):
    """Ids without an image, files of no split, samples of the manifest that no list has."""
    train = root / "splits" / "train.txt"
    train.write_text("train/000\ntrain/001\ntrain/002\ntrain/ghost\n")
    message = "id 'train/ghost' has no image, expected images/train/ghost.jpg, .jpeg or .png"
    unlisted = "no list in splits/ names it, expected its id in one"
    names = [f"{folder}/train/003.png" for folder in ("boundaries", "images", "normals", "semseg")]
    names = [names[0], "depth/train/003.npy", names[1].replace("png", "jpg"), *names[2:]]
    assert found(root) == [
        ("split", "splits/train.txt", message),
        *(("unlisted", name, unlisted) for name in names),
        ("manifest", "manifest.jsonl", "names 'train/003', expected it in a list of splits/"),
    ]
    assert readable_part(root, "train").ids == ["train/000", "train/001", "train/002"]
    train.write_text("train/000\ntrain/000\n")
    assert (
        "split",
        "splits/train.txt",
        "line 2: id 'train/000' stands on line 1 too, expected it once",
    ) in found(root)


def test_links_are_named_when_they_leave(root, tmp_path):
    outside = tmp_path / "outside.png"
    (root / "semseg" / "val" / "000.png").rename(outside)
    (root / "semseg" / "val" / "000.png").symlink_to(outside)
    (root / "more").symlink_to(tmp_path)
    (root / "again").symlink_to(root / "images")
    assert [(kind, path) for kind, path, _ in found(root)] == [
        ("link", "more"),
        ("link", "semseg/val/000.png"),
    ]
    assert all("a link to" in what for _, _, what in found(root))


def test_a_folder_without_a_manifest_needs_none(root):
    (root / "manifest.jsonl").unlink()
    assert check_files(root) == []
    (root / "manifest.jsonl").write_text("not JSON\n")
    assert [(kind, path) for kind, path, _ in found(root)] == [("manifest", "manifest.jsonl")]
