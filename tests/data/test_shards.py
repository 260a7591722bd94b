"""WebDataset shards: the bits of a folder, an order that follows from the seed, errors that name the file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dmtl.cli import main
from dmtl.data import check_dataset, export_folder, export_shards, make_loader, open_dataset
from dmtl.data.folder.dataset import Folder
from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.order import TOGETHER, in_blocks
from dmtl.data.shards.dataset import Shards, shard_paths
from dmtl.data.shards.index import places, scan
from dmtl.data.shards.member import Shard, member_name, split_name
from dmtl.data.shards.write import _tars
from dmtl.data.sources import Joined, Part, Source
from dmtl.errors import DataError
from tests.data.conftest import Synthetic, describe
from tests.data.tiny import Tiny, write_tiny


def same(ours, theirs) -> None:
    assert ours.ids == theirs.ids and ours.tasks == theirs.tasks
    assert ours.available() == theirs.available()
    for index in range(len(ours)):
        a, b = ours.read(index), theirs.read(index)
        assert torch.equal(a.image, b.image) and a.labels.keys() == b.labels.keys()
        for task in a.labels:
            assert a.labels[task].numpy().tobytes() == b.labels[task].numpy().tobytes()


@pytest.fixture
def shards(folder, tmp_path) -> str:
    """The splits of `folder`, without an image that is in both."""
    (folder / "splits" / "train.txt").write_text("b\nc/d\n")
    for split in ("train", "val"):
        made = export_shards(Folder(folder, split), tmp_path / "shards", 1)
    return str(made.folder)


def tar_of(path: Path, files: dict[str, bytes], **options) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def one_shard(folder: Path, files: dict[str, bytes], **options) -> str:
    folder.mkdir(exist_ok=True)
    tar_of(folder / "x.tar", files, **options)
    content = {"tasks": {"sal": {"kind": "binary"}}, "splits": {"train": "x.tar"}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "x.tar")


# -- what is written and read ------------------------------------------------------------------------------


def test_shards_read_as_their_folder(folder, shards):
    for split in ("train", "val"):
        same(open_dataset(shards, split), Folder(folder, split))
    data = open_dataset(shards, "train", tasks=["depth"])
    assert list(data.tasks) == ["depth"] and data.definition("depth")["scale"] == 0.01
    assert check_dataset(data) == []
    with tarfile.open(shard_paths(shards)[0]) as tar:  # as WebDataset lays them out, byte for byte
        assert tar.getnames()[:2] == ["b.png", "b.cracks.png"] and "c/d.semseg.png" in tar.getnames()
        assert tar.extractfile("b.depth.png").read() == (folder / "depth" / "b.png").read_bytes()


def test_shards_of_any_data_set(tmp_path):
    """With boundaries and evaluation, as `export_folder` writes them."""
    source = write_tiny(tmp_path / "source")
    for split in ("train", "val"):
        made = export_shards(Tiny(source, split), tmp_path / "shards", 1)
        export_folder(Tiny(source, split), tmp_path / "folder")
    ours, theirs = Shards(str(made.folder), "train"), Folder(tmp_path / "folder", "train")
    same(ours, theirs)
    assert ours.evaluation == theirs.evaluation and ours.boundary_task == theirs.boundary_task
    assert torch.equal(ours.boundaries(4), theirs.boundaries(4))


def test_labels_that_are_hidden_are_not_written(folder, tmp_path):
    exists = Folder(folder, "train").available()
    labels = LabelMatrix.one_label(exists.ids, exists.tasks, available=exists)
    made = export_shards(Folder(folder, "train"), tmp_path / "shards", 1, labels)
    assert sum(made.labels.values()) == 3 and made.images == 3
    describe(folder, labels="labels.csv")
    labels.write_csv(folder / "labels.csv")
    export_shards(Folder(folder, "train"), tmp_path / "table", 1)
    same(Shards(str(made.folder), "train"), Shards(str(tmp_path / "table" / "{000000..000000}.tar"), "train"))


def test_shards_are_at_most_as_large(tmp_path):
    contents = [(f"i{n:02}", {f"images/i{n:02}.png": bytes(300_000 + n)}) for n in range(10)]
    tars = [tar.bytes() for tar in _tars(iter(contents), 1)]
    assert [len(tar) <= 1_000_000 for tar in tars] == [True] * 4
    names = []
    for tar in tars:
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            names.append(opened.getnames())
    assert names == [[f"i{n:02}.png" for n in range(first, min(10, first + 3))] for first in (0, 3, 6, 9)]
    with pytest.raises(DataError, match=r"'i00' needs 0.3 MB|'big' needs 2.0 MB"):
        list(_tars([("big", {"images/big.png": bytes(2_000_000)})], 1))


def test_an_interrupted_export_is_continued(folder, tmp_path, monkeypatch):
    data, whole, broken = Folder(folder, "train"), tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr("dmtl.data.shards.write._MB", 20_000)  # bytes: a sample each
    made = export_shards(data, whole, 1)
    assert len(Shards(str(made.folder), "train").shards) == 3

    def ends(items):
        yield from items[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_shards(data, broken, 1, progress=ends)
    with pytest.raises(DataError, match="export of train was interrupted; repeat it"):
        Shards(str(broken / "000000.tar"), "train")
    with pytest.raises(DataError, match="export of train was interrupted, repeat and finish it first"):
        export_shards(Folder(folder, "val", tasks=None), broken, 1)
    (broken / "000001.tar").write_bytes(b"half")  # of a writer that was killed before it was listed
    assert export_shards(data, broken, 1).written == 2
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes(), path.name
    assert export_shards(data, broken, 1).written == 0
    with pytest.raises(DataError, match="expected the source from which the export was begun"):
        export_shards(Folder(folder, "train", ids=["a"]), broken, 1)
    one_shard(tmp_path / "others", {"a.png": png(0)})
    with pytest.raises(DataError, match=r"dataset\.yaml: has other tasks than the data set"):
        export_shards(data, tmp_path / "others", 1)
    with pytest.raises(DataError, match=r"dataset\.yaml: splits does not list 000000\.tar"):
        export_shards(Shards(str(tmp_path / "others" / "x.tar"), "train"), tmp_path / "others", 1)


def test_ids_with_dots_and_long_names(tmp_path):
    for id in ("a", "x/2008.01", "50%", "%2E", "ä.b", "l" * 200):
        name = member_name("sal", id, ".png")
        assert split_name(name) == ("sal", id, ".png") and name.rpartition("/")[2].count(".") == 2
    files = {f"{'l' * 120}.png": png(0), f"{'l' * 120}.sal.png": png(1), "ä.png": png(0), "README": b""}
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        root = one_shard(tmp_path / str(number), files, format=form)
        data = Shards(root, "train")
        assert data.ids == ["l" * 120, "ä"] and data.read(0).labels["sal"].eq(1).all() and data.read(1)


def test_an_index_is_made_once_and_again_if_the_shard_changes(tmp_path):
    root = one_shard(tmp_path, {"a.png": png(0), "a.sal.png": png(1)})
    first = Shards(root, "train")
    index = Path(f"{root}.index")
    text = index.read_text()
    assert text.splitlines()[0] == f"dmtl-index 1 {Path(root).stat().st_size}"
    one_shard(tmp_path, {f"{n}.png": png(n) for n in range(30)})
    assert len(Shards(root, "train")) == 30 and index.read_text() != text
    assert first.identity() != Shards(root, "train").identity()
    index.write_text(text.replace(text.split()[2], str(Path(root).stat().st_size), 1))  # of another tar
    with pytest.raises(DataError, match=r"x\.tar/a\.png: .*0\.png.* is in its place: the index is wrong"):
        Shards(root, "train").read(0)
    index.write_text("no index")
    with pytest.raises(DataError, match=r"x\.tar\.index: not an index .* delete it"):
        Shards(root, "train")


def test_sources_of_shards_and_training_on_them(shards, folder):
    parts = [
        Part(open_dataset(shards, "train"), Source(root=shards)),
        Part(Folder(folder, "train"), Source(root=str(folder), name="f")),
    ]
    joined = Joined(parts)
    assert joined.ids == ["shards/b", "shards/c/d", "f/b", "f/c/d"]
    assert joined.shard_numbers().tolist() == [0, 0, -1, -1]
    one = [batch.index.tolist() for batch in make_loader(joined, batch_size=2, workers=0)]
    two = [batch.index.tolist() for batch in make_loader(joined, batch_size=2, workers=2)]
    assert one == two and len(one) == 2


def test_commands(shards, tmp_path, capsys):
    assert main(["data", "check", shards, "--splits", "train"]) == 0
    assert main(["data", "show", shards, "--out", str(tmp_path / "sheet.png")]) == 0
    assert main(["data", "export", shards, str(tmp_path / "again"), "--shards", "1"]) == 0
    assert "{000000..000000}.tar train: 2 images" in capsys.readouterr().out.replace("\n", "")
    (again,) = (tmp_path / "again").glob("*.tar")
    assert again.read_bytes() == Path(shard_paths(shards)[0]).read_bytes()


def test_a_url(shards, tmp_path):
    """Any file system of fsspec; a chained one keeps whole shards on a disk."""
    pytest.importorskip("fsspec")
    for url in (f"file://{shards}", f"filecache::file://{shards}"):
        same(open_dataset(url, "train"), open_dataset(shards, "train"))
    with pytest.raises(DataError, match=r"file:///none/000000\.tar|file:///none/dataset\.yaml"):
        open_dataset("file:///none/000000.tar", "train")
    with pytest.raises(DataError, match="nothing"):
        open_dataset("nothing://a/000000.tar", "train")


# -- order -------------------------------------------------------------------------------------------------


class InShards(Synthetic):
    """Images of which four are in a shard."""

    def shard_numbers(self):
        return np.arange(len(self)) // 4


def test_few_shards_at_a_time():
    data = InShards(256, sizes=((4, 4),))
    loader = make_loader(data, batch_size=8)
    orders = [loader.order(epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(256))
        blocks = (order // 4).reshape(-1, 4 * TOGETHER)
        assert all(len(set(block)) == TOGETHER for block in blocks)  # and no shard is in two of them
        assert any(order[:32] // 4 != np.sort(order[:32] // 4))
    assert not np.array_equal(*orders) and np.array_equal(orders[0], make_loader(data, batch_size=8).order(0))


def test_the_order_of_few_shards_is_that_of_a_folder():
    few = 4 * TOGETHER
    ours, theirs = (make_loader(kind(few, sizes=((4, 4),)), batch_size=8) for kind in (InShards, Synthetic))
    assert np.array_equal(ours.order(3), theirs.order(3))
    order = np.array([2, 0, 2, 1])
    assert np.array_equal(in_blocks(order, order, np.random.default_rng(0)), order)


def test_sources_stay_mixed():
    """Shards of one source do not move images of another."""
    parts = [
        Part(InShards(128, sizes=((4, 4),)), Source(root="s", name="s", weight=2.0)),
        Part(Synthetic(64, sizes=((4, 4),)), Source(root="f", name="f")),
    ]
    order = make_loader(Joined(parts), batch_size=8).order(0)
    assert len(order) == 2 * 128 + 64
    per_quarter = [(part >= 128).sum() for part in np.split(order, 4)]
    assert min(per_quarter) > 4 and sum(per_quarter) == 64
    shards = order[order < 128] // 4
    assert len(set(shards[: 2 * 4 * TOGETHER])) == TOGETHER


# -- what is wrong -----------------------------------------------------------------------------------------


def test_patterns():
    assert shard_paths("a/{08..11}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert shard_paths("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    for bad in (
        "{3..1}.tar",
        "{0..99999999}.tar",
        "{x..y}.tar",
        "{0..1.tar",
        "{}.tar",
        "{0..9999}{0..9999}.tar",
    ):
        with pytest.raises(DataError, match="expected"):
            shard_paths(bad)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.sal.png": png(1)}, r"x\.tar: 'a' has labels but no image"),
        ({"a.png": png(1), "a.jpg": png(1)}, r"x\.tar/a\.jpg: a second file of 'a' for images"),
        ({"../a.png": png(1)}, r"x\.tar: name of a file: '\.\./a'"),
        ({"README": b""}, r"x\.tar: no image in these shards"),
        ({"a.png": b"no image"}, r"x\.tar/a\.png: not an image"),
        ({"a.png": png(0), "a.sal.png": png(0)[:40]}, r"x\.tar/a\.sal\.png: not an image"),
        ({"a.png": png(0), "a.sal.png": png(7)}, r"x\.tar/a\.sal\.png: "),
    ],
)
def test_errors_name_shard_and_member(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        Shards(one_shard(tmp_path, files), "train").read(0)


def test_damaged_tars(tmp_path):
    root = one_shard(tmp_path, {"a.png": png(0), "b.png": png(1), "c.png": png(0)})
    path, content = Path(root), Path(root).read_bytes()
    with tarfile.open(root) as tar:
        second = tar.getmember("b.png").offset
    damaged = bytearray(content)
    damaged[second + 3] ^= 1
    for bad, message in (
        (bytes(damaged), rf"x\.tar: no file at byte {second} \(bad checksum\)"),  # tarfile would end there
        (content[:1200], r"x\.tar: no file at byte 1024|the tar ends before"),
        (content[: second + 520], r"x\.tar/b\.png: the tar ends before its \d+ bytes"),
        (b"\x1f\x8b" + content, r"x\.tar: no file at byte 0 .* expected an uncompressed tar"),
        (b"", r"x\.tar: no file at byte 0 \(empty header\)"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            list(scan(Shard.of(root)))
    path.write_bytes(content)
    data = Shards(root, "train")
    path.write_bytes(content[: second + 520])
    with pytest.raises(DataError, match=r"x\.tar/b\.png: .*truncated"):
        data.read(1)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"x\.tar/b\.png: .*no header before it"):
        data.read(1)


def test_dataset_yaml(tmp_path):
    root = one_shard(tmp_path, {"a.png": png(0)})
    path = tmp_path / "dataset.yaml"
    good = yaml.safe_load(path.read_text())
    for change, message in (
        ({"splits": {}}, "unknown split 'train'"),
        ({"splits": {"train": "y.tar"}}, r"x\.tar is in no split"),
        ({"splits": {"train": "{x,x}.tar"}}, "a shard is in two splits"),
        ({"splits": {"train": "{9..1}.tar"}}, r"dataset\.yaml: splits: \{9\.\.1\}\.tar: "),
        ({"splits": {"val": "x.tar", "train": "y.tar"}}, "has no shard of the split 'train'"),
        ({"splits": {"train": ["x.tar"]}}, "no splits"),
        ({"tasks": {}}, "no tasks"),
        ({"labels": "a.csv"}, "unknown key 'labels'"),
    ):
        path.write_text(yaml.safe_dump({**good, **change}))
        with pytest.raises(DataError, match=message):
            Shards(root, "train")
    path.write_text("{")
    with pytest.raises(DataError, match=r"dataset\.yaml: not readable YAML"):
        Shards(root, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"dataset\.yaml: no such file"):
        Shards(root, "train")
    path.write_text(yaml.safe_dump(good))
    Path(root).unlink()
    with pytest.raises(DataError, match=r"x\.tar: cannot be read \(No such file"):
        open_dataset(root, "train")


def test_what_is_kept_of_an_image(tmp_path):
    """Reading keeps no pixels, and an index takes few bytes."""
    root = one_shard(tmp_path, {f"{n:05}{kind}.png": b"" for n in range(500) for kind in ("", ".sal")})
    data = Shards(root, "train")
    arrays = sum(value.nbytes for value in vars(data).values() if isinstance(value, np.ndarray))
    assert arrays <= 500 * 2 * 20 and len(places(data.shards[0])) == 1000
