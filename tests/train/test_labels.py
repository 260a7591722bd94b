"""Which labels a run sees: splits among more tasks than it learns, published files, nothing hidden."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from dmtl.data import LabelMatrix
from dmtl.data.folder.dataset import Folder
from dmtl.errors import CheckpointError, ConfigError, DataError
from dmtl.tasks.scalar import NO_NUMBER
from dmtl.train.setup import open_data, training_loader
from dmtl.train.trainer import Trainer

TASKS = ["semseg", "edge", "heat"]


@pytest.mark.parametrize("labels", ["one-label", "random-labels"])
def test_single_task_runs_share_the_split_of_the_multi_task_run(config_for, labels):
    whole = open_data(config_for(data=dict(labels=labels)).data).labels
    parts = [open_data(config_for(data=dict(labels=labels, tasks=[task])).data).labels for task in TASKS]
    for part, task in zip(parts, TASKS, strict=True):
        assert part.tasks == [task] and np.array_equal(part.column(task), whole.column(task))
        assert 0 < part.matrix.sum() < len(part)
    if labels == "one-label":
        assert sorted(part.matrix.sum() for part in parts) == [2, 3, 3]


def test_the_tasks_to_choose_among(config_for):
    def labels(**data):
        return open_data(config_for(data=dict(labels="one-label", **data)).data).labels

    assert labels(tasks=["edge"], label_tasks=["edge"]).matrix.all()
    two = labels(tasks=["edge"], label_tasks=["edge", "heat"])
    assert two.tasks == ["edge"] and two.matrix.sum() == 4
    assert (two.matrix ^ labels(tasks=["heat"], label_tasks=["heat", "edge"]).matrix).all()
    for tasks in (["heat"], []):
        with pytest.raises(ConfigError, match="data.label_tasks must include data.tasks, got no edge"):
            labels(tasks=["edge"], label_tasks=tasks)
    with pytest.raises(DataError, match="unknown task 'haet', did you mean 'heat'"):
        labels(tasks=["edge"], label_tasks=["edge", "haet"])


def test_rendered_images_too(config_for):
    size = dict(root="scenes", labels="one-label", size=(16, 16), train_count=10, val_count=1)
    whole = open_data(config_for(data=size).data).labels
    part = open_data(config_for(data=dict(tasks=["sal", "depth"], **size)).data).labels
    assert part == whole.subset(tasks=["sal", "depth"])


def test_published_files(config_for, images, tmp_path):
    """Any of their formats stands for a CSV file; rows by id, columns by name."""
    ids = [f"i{n}" for n in range(8)]
    expected = LabelMatrix(ids, TASKS, [[n % 2, n == 3, n % 3 == 0] for n in range(8)])
    lists = {t: [i for i, on in zip(ids, expected.column(t)) if on] for t in TASKS[::-1]}
    np.save(tmp_path / "l.npy", np.array({**lists, "other": ids}, dtype=object), allow_pickle=True)
    shown = LabelMatrix(ids, TASKS, expected.matrix | ~expected.matrix.any(1, keepdims=True))
    assert open_data(config_for(data=dict(labels=str(tmp_path / "l.npy"))).data).labels == expected
    np.save(tmp_path / "l.npy", np.array({"semseg": ids, "edge": ids}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="l.npy: no column for task 'heat'"):
        open_data(config_for(data=dict(labels=str(tmp_path / "l.npy"))).data)
    by_image = {i: [int(on) for on in row] for i, row in zip(reversed(ids), shown.matrix[::-1])}
    torch.save(by_image, tmp_path / "l")
    config = config_for(data=dict(labels=str(tmp_path / "l"), label_tasks=TASKS))
    assert open_data(config.data).labels == shown
    one = config_for(data=dict(labels=str(tmp_path / "l"), label_tasks=TASKS, tasks=["heat"]))
    assert open_data(one.data).labels == shown.subset(tasks=["heat"])
    with pytest.raises(DataError, match="3 columns without names, expected 5 as published"):
        open_data(config_for(data=dict(labels=str(tmp_path / "l"))).data)


def test_a_table_without_names_is_in_the_order_of_the_images(config_for, tmp_path):
    """As MTPSL published them: one row for each training image, whatever its name, and no other number."""
    rows = torch.tensor([[n % 2, n == 3, n % 3 == 0] for n in range(8)]).float()
    torch.save({"labels_weights": rows}, tmp_path / "l.pth")
    data = dict(labels=str(tmp_path / "l.pth"), label_tasks=TASKS)
    labels = open_data(config_for(data=data).data).labels
    assert labels.ids == [f"i{n}" for n in range(8)] and np.array_equal(labels.matrix, rows.bool().numpy())
    torch.save({"labels_weights": rows[:7]}, tmp_path / "l.pth")
    with pytest.raises(DataError, match="l.pth: 7 rows, expected 8, one for each image"):
        open_data(config_for(data=data).data)


def test_a_run_goes_on_with_its_own_labels_only(config_for, tmp_path):
    table = LabelMatrix.full([f"i{n}" for n in range(8)], TASKS)
    table.write_csv(tmp_path / "l.csv")
    config = config_for(data=dict(labels=str(tmp_path / "l.csv")))
    Trainer(config).fit()
    Trainer(config, resume=True)
    changed = table.matrix.copy()
    changed[3, 1] = False
    LabelMatrix(table.ids, table.tasks, changed).write_csv(tmp_path / "l.csv")
    with pytest.raises(CheckpointError, match="labels.csv: the run began with other labels"):
        Trainer(config, resume=True)


@pytest.fixture
def poisoned(images, tmp_path):
    """(folder, table): the file of every label that the table hides is no label at all."""
    root = tmp_path / "poisoned"
    shutil.copytree(images, root)
    ids = [f"i{n}" for n in range(8)]
    table = LabelMatrix(ids, TASKS, [[n % 3 == 0, n % 3 == 1, n % 3 == 2 or n == 0] for n in range(8)])
    for id, task in itertools.product(ids, TASKS):
        if task not in table.tasks_of(id):
            (root / task / f"{id}.png").write_bytes(b"poison")
    table.write_csv(tmp_path / "table.csv")
    return root, tmp_path / "table.csv"


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"cache_dir": "kept"}, {"workers": 1}], ids=str)
def test_training_never_opens_what_is_hidden(config_for, poisoned, tmp_path, options):
    """Crops are judged, images cached and batches made without one look at a hidden label."""
    root, table = poisoned
    if "cache_dir" in options:
        options = {"cache_dir": str(tmp_path / "kept")}
    with pytest.raises(DataError, match="not an image"):
        Folder(root, "train").read(1)
    for resize in (True, False):
        data = dict(root=str(root), labels=str(table), size=(16, 16), resize=resize, **options)
        config = config_for(data=data)
        stream = training_loader(config, open_data(config.data)).stream()
        for batch in itertools.islice(stream, 4):
            for task in TASKS:
                ignore = NO_NUMBER if task == "heat" else 255
                for present, label in zip(batch.present[task], batch.labels[task], strict=True):
                    assert present or (label == ignore).all(), "hidden: ignored everywhere, zero nowhere"


def test_a_run_with_hidden_labels_poisoned(config_for, poisoned):
    """The same bits as with those labels intact."""
    root, table = poisoned
    runs = [Trainer(config_for(name, data=dict(labels=str(table), **data)))
            for name, data in (("whole", {}), ("poisoned", {"root": str(root)}))]  # fmt: skip
    for run in runs:
        run.fit()
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
