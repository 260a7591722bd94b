"""Several data sets as one: union of tasks, terms of labels, ids, sampling by weight, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dmtl.data import DiskCached, LabelMatrix, Source, make_loader, open_dataset, open_sources
from dmtl.data.base import source_of
from dmtl.data.loading.transforms import train_transform
from dmtl.data.loading.wrappers import Cached, Resized, Subset
from dmtl.errors import ConfigError, DataError
from tests.fixtures.sources import LINES, ROOMS, STREET, write_source, write_three


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return write_three(tmp_path_factory.mktemp("sources"))


def sources(roots: dict[str, Path], **changes: dict) -> list[Source]:
    """The three, with `boundaries` as `edge`; `changes` by name."""
    own = {"lines": {"rename": {"boundaries": "edge"}}}
    return [Source(**{"root": str(r), **own.get(n, {}), **changes.get(n, {})}) for n, r in roots.items()]


@pytest.fixture(scope="module")
def joined(roots):
    return open_sources(sources(roots), "train")


def toml(path: Path, roots: dict[str, Path]) -> Path:
    lines = [f'[[data.sources]]\nroot = "{root}"' for root in roots.values()]
    lines[1] += '\nrename = {boundaries = "edge"}'
    path.write_text("\n".join(lines))
    return path


def test_the_union(joined, roots):
    assert joined.name == "rooms+lines+street" and len(joined) == 15
    assert list(joined.tasks) == ["semseg", "depth", "edge"]
    assert joined.ids[0] == "rooms/0" and joined.ids[6] == "lines/0" and joined.ids[-1] == "street/4"
    exists = joined.available()
    assert exists.matrix.sum(0).tolist() == [11, 6, 4]
    assert exists.tasks_of("lines/3") == ["edge"] and exists.tasks_of("street/0") == ["semseg"]
    assert {n: len(t) for n, t in exists.of_sources(joined.sources).items()} == dict(
        rooms=6, lines=4, street=5
    )
    edge = joined.tasks["edge"]
    assert type(edge).__name__ == "Edge" and edge.weight == 50 and edge.thin


def test_samples_are_those_of_the_sources(joined, roots):
    alone = {name: open_dataset(root, "train") for name, root in roots.items()}
    for index, id in enumerate(joined.ids):
        name, _, own = id.partition("/")
        sample, other = joined.read(index), alone[name].read(int(own))
        assert sample.id == id and torch.equal(sample.image, other.image)
        assert joined.image_file(index) == alone[name].image_file(int(own))
        if name == "rooms":
            assert sample.labels.keys() == other.labels.keys()
            assert all(torch.equal(sample.labels[t], other.labels[t]) for t in other.labels)
        if name == "lines":
            assert torch.equal(sample.labels["edge"], other.labels["boundaries"])
    assert joined.read(6, ["depth", "semseg"]).labels == {}


def test_classes_in_another_order_and_another_ignored_value(joined, roots):
    classes, street = joined.tasks["semseg"].classes, STREET["semseg"]["classes"]
    assert classes == ("sky", "road", "car") and joined.tasks["semseg"].ignore == 255
    stored = open_dataset(roots["street"], "train").read(2).labels["semseg"]
    label = joined.read(joined.ids.index("street/2")).labels["semseg"]
    assert label.dtype == torch.uint8
    for id, name in enumerate(street):
        assert torch.equal(stored == id, label == classes.index(name))
    assert torch.equal(stored == 9, label == 255) and (stored == 9).any()


def test_another_ignored_value_of_numbers(tmp_path, roots):
    other = write_source(tmp_path / "far", {"depth": {"kind": "scalar", "scale": 0.01, "ignore": -1.0}})
    joined = open_sources([*sources(roots), Source(str(other), drop=[])], "train")
    assert joined.tasks["depth"].ignore == 255
    label = torch.full((1, 2, 2), -1.0)
    label[0, 0, 0] = 3.0
    assert joined.parts[-1]._label("depth", label).tolist() == [[[3.0, 255.0], [255.0, 255.0]]]


def test_drop_rename_name_and_tasks(roots):
    chosen = sources(roots, rooms=dict(drop=["depth"], rename={"semseg": "scene"}, name="inside"))
    joined = open_sources(chosen, "val")
    assert list(joined.tasks) == ["scene", "edge", "semseg"] and joined.ids[0] == "inside/6"
    assert joined.tasks["scene"].classes == ("sky", "road", "car")
    part = open_sources(chosen, "val", tasks=["semseg"])
    assert list(part.sources) == ["street"] and part.ids == ["street/5", "street/6"]
    with pytest.raises(DataError, match="unknown task 'depth'.*available: scene, edge, semseg"):
        open_sources(chosen, "val", tasks=["depth"])


def test_a_renamed_task_keeps_what_its_name_implied(roots):
    (made,) = open_sources(
        [Source(str(roots["rooms"]), drop=["semseg"], rename={"depth": "range"})], "val"
    ).tasks.values()
    assert made.name == "range" and made.distance and made.ignore == 255


def test_rendered_images_are_a_source(roots):
    joined = open_sources(
        [Source("scenes", drop=["semseg", "depth", "edge"]), sources(roots)[1]], "val", size=(16, 24), made=3
    )
    assert joined.ids[:4] == ["scenes/val-000000", "scenes/val-000001", "scenes/val-000002", "lines/4"]
    assert joined.read(0).size == (16, 24) and joined.read(3).size == (24, 40)


REFUSED = [
    (dict(rooms=dict(drop=["dept"])), "drop of rooms: unknown task 'dept', did you mean 'depth'"),
    (dict(rooms=dict(rename={"edge": "x"})), "rename of rooms: unknown task 'edge'"),
    (dict(rooms=dict(drop=["depth"], rename={"depth": "x"})), "rename of rooms: unknown task 'depth'"),
    (dict(rooms=dict(drop=["semseg", "depth"])), "drop of rooms leaves no task"),
    (dict(rooms=dict(rename={"depth": "semseg"})), "rooms has two tasks called 'semseg', semseg and depth"),
    (dict(lines=dict(rename={"boundaries": "semseg"})), "lines cannot rename boundaries to semseg"),
    (dict(lines=dict(rename={"boundaries": "keys"})), "lines cannot rename boundaries to keys"),
    (dict(street=dict(name="rooms")), "are both called 'rooms'; give one of them another name"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_refused(roots, changes, message):
    with pytest.raises(ConfigError, match=f"data.sources: .*{message}"):
        open_sources(sources(roots, **changes), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no root"),
        (dict(root="a", weight=0.0), "weight of a must be above 0 and finite, got 0"),
        (dict(root="a", name="b/c"), "the name of a must be printable and without /"),
        (dict(root="/"), 'the name of / must be .*; set another: name = "..."'),
        (dict(root="x.toml"), "root is the configuration x.toml, expected a data set"),
    ],
)
def test_refused_values(options, message):
    with pytest.raises(ConfigError, match=message):
        Source(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["sky", "road", "cow"]},
            "classes is sky, road, car in rooms and sky, road, cow in other",
        ),
        ({"classes": ["sky", "road", "car"], "weight": 2.0}, "weight is 1.0 in rooms and 2.0 in other"),
    ],
)
def test_sources_must_agree(tmp_path, roots, options, message):
    task = {"kind": "classes", **options}
    other = Source(str(write_source(tmp_path / "other", {"semseg": task}, train=1, val=1)))
    with pytest.raises(ConfigError, match="rooms and other differ about semseg: " + message) as error:
        open_sources([*sources(roots), other], "train")
    for remedy in ('rename = {semseg = "..."}', 'drop = ["semseg"]', "`values:`"):
        assert remedy in str(error.value)
    open_sources([*sources(roots), replace(other, rename={"semseg": "things"})], "train")


def test_a_file_names_the_sources(tmp_path, roots):
    path = toml(tmp_path / "three.toml", roots)
    joined = open_dataset(path, "val", count=1)
    assert joined.ids == ["rooms/6", "lines/4", "street/5"]
    assert open_dataset(path, "val", tasks=["depth"], size=(8, 8)).read(0).size == (8, 8)
    for text, message in (
        ("x = ", "not valid TOML"),
        ("[data]\nroot = 'a'", r"no \[\[data.sources\]\]"),
        ("[[data.sources]]\nrot = 'a'", r"data.sources\[0\].rot is not a known key; did you mean"),
        ("[[data.sources]]\nroot = 3", r"data.sources\[0\].root must be of type str"),
        ("data.sources = [3]", r"data.sources\[0\] must be a table"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"three.toml: .*{message}"):
            open_dataset(path, "val")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_dataset(tmp_path / "none.toml", "val")


# labels


def test_generated_labels_are_chosen_among_those_there_are(joined):
    exists = joined.available()
    one = LabelMatrix.one_label(joined.ids, list(joined.tasks), 0, exists)
    assert (one.matrix.sum(1) == 1).all() and not (one.matrix & ~exists.matrix).any()
    assert sorted(one.matrix.sum(0)) == [4, 5, 6]  # as even as the sources allow
    random = LabelMatrix.random_labels(joined.ids, list(joined.tasks), 0, available=exists)
    assert random.matrix.any(1).all() and not (random.matrix & ~exists.matrix).any()


# sampling


def weighted(roots, **weights: float):
    return open_sources(sources(roots, **{name: dict(weight=w) for name, w in weights.items()}), "train")


def test_weights_of_one_change_nothing(joined, roots):
    plain = make_loader(joined, batch_size=4, seed=3)
    order = np.random.default_rng([3, 5]).permutation(15)
    assert plain.order(5).tolist() == order.tolist() and len(plain) == 3


def test_images_are_drawn_as_often_as_the_weights_say(roots):
    data = weighted(roots, rooms=2.0, lines=0.5, street=1.4)
    loader = make_loader(data, batch_size=4, seed=0)
    assert len(loader) == (12 + 2 + 7) // 4
    total: Counter[str] = Counter()
    for epoch in range(300):
        found = Counter(data.ids[index] for index in loader.order(epoch))
        per_source = Counter(map(source_of, found.elements()))
        assert per_source == {"rooms": 12, "lines": 2, "street": 7}
        assert all(found[id] == 2 for id in data.ids[:6])
        assert set(found.values()) <= {1, 2}
        total += found
    for id, count in total.items():  # within four standard deviations of independent draws
        share = data.sources[source_of(id)]
        assert abs(count - 300 * share) <= 4 * np.sqrt(300 * (share % 1) * (1 - share % 1)), id


def test_batches_depend_on_seed_epoch_and_position_alone(roots):
    data = Resized(weighted(roots, rooms=1.5), (16, 16))

    def batches(**options):
        loader = make_loader(data, None, train_transform((16, 16)), batch_size=6, seed=1, **options)
        stream = loader.stream(2)
        return [next(stream) for _ in range(4)]

    alone = batches()
    for workers in (1, 2):
        for one, other in zip(alone, batches(workers=workers), strict=True):
            assert one.ids == other.ids and torch.equal(one.image, other.image)
    ranks = [batches(rank=rank, world=3) for rank in range(3)]
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert [id for part in parts for id in part.ids] == whole.ids
        assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
        assert all(part.labelled == whole.labelled and part.total == 6 for part in parts)


def test_two_draws_of_an_image_are_augmented_differently(roots):
    data = Subset(weighted(roots, rooms=2.0), range(6))
    loader = make_loader(data, None, train_transform((16, 16)), batch_size=12)
    (batch,) = loader
    rows = [row for row, id in enumerate(batch.ids) if id == "rooms/0"]
    assert len(rows) == 2 and not torch.equal(*batch.image[rows])


def test_balance(joined, roots):
    labels = LabelMatrix.one_label(joined.ids, list(joined.tasks), 0, joined.available())
    loader = make_loader(joined, labels, train_transform((16, 16)), batch_size=3, balance=True)
    assert all(all(on.any() for on in batch.present.values()) for batch in loader)
    with pytest.raises(DataError, match="balance and weights of sources both decide how often"):
        make_loader(weighted(roots, rooms=2.0), batch_size=3, balance=True)


# caches


def test_a_cache_on_disk_knows_its_sources(tmp_path, roots):
    copies = {name: Path(shutil.copytree(root, tmp_path / name)) for name, root in roots.items()}
    cache = tmp_path / "cache"

    def read(names):
        data = DiskCached(open_sources(sources({n: copies[n] for n in names}), "train"), cache)
        return {id: data.read(index) for index, id in enumerate(data.ids)}

    first = read(copies)
    for id, sample in read(["street", "rooms"]).items():  # other ids of classes, other places
        if source_of(id) == "street":
            assert not torch.equal(sample.labels["semseg"], first[id].labels["semseg"])
    again = read(copies)
    for id, sample in first.items():
        assert torch.equal(sample.image, again[id].image)
        assert all(torch.equal(label, again[id].labels[task]) for task, label in sample.labels.items())


def test_a_cache_in_memory_and_a_subset(joined):
    data = Cached(Resized(Subset(joined, [3, 7, 12]), (16, 16))).warm()
    assert data.sources == joined.sources and data.ids == ["rooms/3", "lines/1", "street/2"]
    assert torch.equal(data.read(1).labels["edge"], Resized(joined, (16, 16)).read(7).labels["edge"])


def test_boundaries_are_those_of_the_source(tmp_path, roots):
    root = Path(shutil.copytree(roots["lines"], tmp_path / "lines"))
    shutil.copytree(root / "boundaries", root / "contours")
    content = {"name": "l", "tasks": LINES, "boundaries": "contours", "evaluation": {"max_dist": 0.01}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(content))
    joined = open_sources(sources({**roots, "lines": root}), "val")
    assert joined.boundary_task == "edge" and joined.evaluation == {"max_dist": 0.01}
    assert joined.boundaries(0) is None
    assert torch.equal(joined.boundaries(3), joined.read(3).labels["edge"][0] == 1)


def test_definitions_name_each_source(joined):
    found = joined.definition("semseg")
    assert set(found["sources"]) == {"rooms", "street"}
    assert found["sources"]["street"]["classes"] == STREET["semseg"]["classes"]
    assert joined.definition("depth")["sources"]["rooms"]["scale"] == ROOMS["depth"]["scale"]
