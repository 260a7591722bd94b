import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.errors import DataError

IDS = [f"img{n}" for n in range(100)]
TASKS = ["semseg", "edge", "normals"]


def test_one_label_is_balanced_and_reproducible():
    labels = LabelMatrix.one_label(IDS, TASKS, seed=1)
    assert (labels.matrix.sum(1) == 1).all()
    assert sorted(labels.matrix.sum(0)) == [33, 33, 34]
    assert labels == LabelMatrix.one_label(IDS, TASKS, seed=1)
    assert labels != LabelMatrix.one_label(IDS, TASKS, seed=2)


def test_draws_are_fixed_for_all_time():
    """These values were computed once; they may not change, or old runs could not be repeated."""
    labels = LabelMatrix.one_label(["a", "b", "c", "d"], ["edge", "sal"], seed=7)
    assert {i: labels.tasks_of(i) for i in labels.ids} == {
        "a": ["edge"],
        "b": ["sal"],
        "c": ["sal"],
        "d": ["edge"],
    }
    labels = LabelMatrix.random_labels(["a", "b", "c", "d"], ["edge", "sal"], seed=7)
    assert labels.tasks_of("a") == ["edge", "sal"]
    assert [labels.tasks_of(i) for i in "bcd"] == [["sal"]] * 3


def test_order_of_ids_and_tasks_does_not_matter():
    straight = LabelMatrix.random_labels(IDS, TASKS, seed=3)
    turned = LabelMatrix.random_labels(IDS[::-1], TASKS[::-1], seed=3)
    assert turned.subset(IDS, TASKS) == straight
    exists = LabelMatrix(IDS, TASKS, np.arange(300).reshape(100, 3) % 7 < 4)
    for available in (None, exists):
        straight = LabelMatrix.one_label(IDS, TASKS, 3, available=available)
        turned = LabelMatrix.one_label(IDS[::-1], TASKS[::-1], 3, available=available)
        assert turned.subset(IDS, TASKS) == straight


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 5), st.data())
def test_one_label_respects_what_exists_and_cannot_be_evened_out_further(n, t, seed, data):
    ids, tasks = IDS[:n], [f"t{k}" for k in range(t)]
    exists = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=n, max_size=n))
    )
    labels = LabelMatrix.one_label(ids, tasks, seed, available=LabelMatrix(ids, tasks, exists))
    assert not (labels.matrix & ~exists).any()
    assert (labels.matrix.sum(1) == exists.any(1)).all()
    # No task can pass an image on, directly or through others, to one that has two fewer.
    counts = labels.matrix.sum(0)
    for full in range(t):
        reach, grown = {full}, True
        while grown:
            more = {b for a in reach for b in range(t) if (labels.matrix[:, a] & exists[:, b]).any()} - reach
            reach, grown = reach | more, bool(more)
        assert min(counts[list(reach)]) >= counts[full] - 1


def test_random_labels_have_at_least_one_and_follow_p():
    ids = [str(n) for n in range(4000)]
    labels = LabelMatrix.random_labels(ids, ["a", "b"], 0, p={"a": 0.2, "b": 0.9})
    assert labels.matrix.any(1).all()
    # P(neither) = 0.8 * 0.1; then draw / p is uniform in [1, 5] for a and in [1, 1.11] for b, and the smaller
    # one is kept: a with probability 0.0139.
    assert abs(labels.column("a").mean() - (0.2 + 0.08 * 0.0139)) < 0.02
    assert abs(labels.column("b").mean() - (0.9 + 0.08 * 0.9861)) < 0.02
    assert LabelMatrix.random_labels(ids, ["a", "b"], 0, p=1).matrix.all()


def test_random_labels_respect_what_exists():
    exists = np.zeros((100, 3), bool)
    exists[:50, 1] = True
    labels = LabelMatrix.random_labels(IDS, TASKS, 0, p=0.1, available=LabelMatrix(IDS, TASKS, exists))
    assert (labels.matrix == exists).all()


@pytest.mark.parametrize("p", [-0.1, 1.5, 0.0, {"semseg": 0.5}, float("nan")])
def test_random_labels_refuse_a_bad_p(p):
    with pytest.raises(ValueError, match="random_labels: p must"):
        LabelMatrix.random_labels(IDS, TASKS, 0, p=p)


def test_csv_round_trip(tmp_path):
    labels = LabelMatrix.random_labels(["plain", "with,comma", 'with "quote"', "city/ä"], TASKS, 0)
    labels.write_csv(tmp_path / "labels.csv")
    assert LabelMatrix.read_csv(tmp_path / "labels.csv") == labels
    assert list(tmp_path.iterdir()) == [tmp_path / "labels.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: header"),
        ("image,semseg\n", "line 1: header"),
        ("id,semseg,semseg\na,1,1\n", "line 1: a task name is empty or repeated"),
        ("id,sem\x7fseg\na,1\n", "line 1: name of a task 'sem\\x7fseg', expected printable"),
        ("id,semseg,edge\na,1\n", "line 2: 2 cells, expected 3"),
        ("id,semseg\na,1\nb,2\n", "line 3: cell '2', expected 0 or 1"),
        ("id,semseg\na,1\n\na,0\n", "line 4: id 'a' is on line 2 too"),
        ("id,semseg\n,1\n", "line 2: the id is empty"),
        ('id,semseg\n"a,1\n', "not a readable table"),
    ],
)
def test_bad_csv_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        LabelMatrix.read_csv(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_missing_or_binary_csv(tmp_path):
    with pytest.raises(DataError, match="labels.csv: cannot be read"):
        LabelMatrix.read_csv(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"id,semseg\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        LabelMatrix.read_csv(tmp_path / "labels.csv")


def test_a_table_that_was_read_names_its_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,semseg\na,1\n")
    for ids, tasks in ((["a"], ["depth"]), (["a", "b"], ["semseg"])):
        with pytest.raises(DataError) as error:
            LabelMatrix.full(ids, tasks).intersect(LabelMatrix.read_csv(path))
        assert str(error.value).startswith(f"{path}: no ")


def test_everything_is_addressed_by_name():
    labels = LabelMatrix(["x", "y"], ["edge", "sal"], [[1, 0], [1, 1]])
    assert labels.tasks_of("y") == ["edge", "sal"] and labels.tasks_of("x") == ["edge"]
    assert labels.column("sal").tolist() == [False, True]
    turned = LabelMatrix(["y", "x"], ["sal", "edge"], [[1, 0], [0, 1]])
    assert labels.intersect(turned).matrix.tolist() == [[1, 0], [0, 1]]
    assert labels.statistics() == {
        "images": 2,
        "labels": 3,
        "per_task": {"edge": 2, "sal": 1},
        "labels_per_image": {"1": 1, "2": 1},
    }
    for call in (
        lambda: labels.subset(ids=["x", "z"]),
        lambda: labels.tasks_of("z"),
        lambda: labels.column("depth"),
    ):
        with pytest.raises(DataError, match="'z'|'depth'"):
            call()
    with pytest.raises(ValueError, match="matrix must be"):
        LabelMatrix(["x"], ["a"], np.zeros((2, 1)))
    with pytest.raises(DataError, match="ids must be unique"):
        LabelMatrix(["x", "x"], ["a"], np.zeros((2, 1)))


def test_random_start_does_not_touch_global_state():
    before = np.random.get_state()[1].copy()
    LabelMatrix.one_label(IDS, TASKS, 5)
    assert (np.random.get_state()[1] == before).all()


def test_pairs_count_images_with_both():
    labels = LabelMatrix(["x", "y", "z"], ["edge", "sal", "depth"], [[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    assert labels.pairs().tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert LabelMatrix([], ["edge"], np.zeros((0, 1))).pairs().tolist() == [[0]]


def test_tables_agree_over_shared_tasks():
    whole = LabelMatrix.one_label(["a", "b", "c", "d"], ["semseg", "edge", "sal"], seed=1)
    assert whole.agrees(whole.subset(tasks=["edge"])) and whole.subset(tasks=["edge", "sal"]).agrees(whole)
    assert not whole.agrees(LabelMatrix(whole.ids, ["edge"], ~whole.subset(tasks=["edge"]).matrix))
    assert not whole.agrees(whole.subset(ids=["a", "b", "c"]))
    other = LabelMatrix(whole.ids, ["sal", "depth"], np.ones((4, 2), bool))
    assert not whole.agrees(other) and whole.agrees(other.subset(tasks=["depth"]))
