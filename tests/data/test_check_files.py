"""What `check_files` finds in a folder that was converted and then suffered."""

from __future__ import annotations

from pathlib import Path

import pytest

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
        ("manifest", "depth/train/000.npy", "is missing, but listed in manifest.jsonl"),
        ("manifest", "semseg/train/001.png", f"has {size} bytes, expected {size - 4} as converted"),
        ("manifest", "images/val/001.jpg", "has another SHA-256 than in manifest.jsonl"),
        ("manifest", "depth/train/001.npy", "is not in manifest.jsonl"),
    ]
    assert found(root, workers=workers) == expected


def test_lists_and_files_must_agree(root):
    """Ids without an image, files of no split, samples of the manifest that no list has."""
    train = root / "splits" / "train.txt"
    train.write_text("train/000\ntrain/001\ntrain/002\ntrain/ghost\n")
    message = "id 'train/ghost' has no image, expected images/train/ghost.jpg or the like"
    unlisted = "its id is in no list of splits/"
    names = [f"{folder}/train/003.png" for folder in ("boundaries", "images", "normals", "semseg")]
    names = [names[0], "depth/train/003.npy", names[1].replace("png", "jpg"), *names[2:]]
    assert found(root) == [
        ("split", "splits/train.txt", message),
        *(("unlisted", name, unlisted) for name in names),
        ("manifest", "manifest.jsonl", "'train/003' is in no list of splits/"),
    ]
    assert readable_part(root, "train").ids == ["train/000", "train/001", "train/002"]
    train.write_text("train/000\ntrain/000\n")
    assert found(root) == [("split", "splits/train.txt", "line 2: id 'train/000' is also on line 1")]


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
