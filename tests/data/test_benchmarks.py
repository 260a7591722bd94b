"""Which benchmark a folder holds, opening it by path, and what may be done with it."""

import shutil

import pytest

from dmtl.data import open_dataset
from dmtl.data.benchmarks.base import Distribution
from dmtl.data.benchmarks.detect import FORMATS, detect, distribution, open_distribution, recognised
from dmtl.data.scenes import Scenes
from dmtl.errors import ConfigError, DataError
from dmtl.train.config import DataConfig
from dmtl.train.setup import open_data
from tests.fixtures import FIXTURES, write_fixture

SIZE = (40, 56)
FOUND = {name: name.removesuffix("-mt").removesuffix("-label") for name in FIXTURES}
FOUND["cityscapes-19-label"] = "cityscapes-7"  # `label` alone: reading it says what to do


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    top = tmp_path_factory.mktemp("benchmarks")
    return {name: write_fixture(name, top / name, 2, 1, SIZE) for name in FIXTURES}


def test_formats_are_what_they_are_called():
    for name in FORMATS:
        assert issubclass(distribution(name), Distribution) and distribution(name).format == name


@pytest.mark.parametrize("name", FIXTURES)
def test_each_fixture_is_recognised_as_one_format(written, name):
    assert recognised(written[name]) == [FOUND[name]] and detect(str(written[name])) == FOUND[name]
    dataset = open_distribution(written[name], "train")
    assert type(dataset) is distribution(FOUND[name]) and len(dataset) == 2
    assert dataset.name == dataset.format == FOUND[name] and dataset.split == "train"
    if name != "cityscapes-19-label":
        assert dataset.read(0).labels.keys() <= dataset.tasks.keys() and dataset.read(0).size == SIZE


@pytest.mark.parametrize("name", sorted(set(FIXTURES) - {"cityscapes-19-label"}))
def test_open_dataset_opens_each(written, name):
    dataset = open_dataset(written[name], "train", size=(20, 28), count=1, tasks=["semseg"])
    assert len(dataset) == 1 and list(dataset.tasks) == ["semseg"] and dataset.read(0).size == (20, 28)
    with pytest.raises(DataError, match="split must be one of train, val"):
        open_dataset(written[name], "trian")
    with pytest.raises(DataError, match="unknown task 'semsge', did you mean 'semseg'"):
        open_dataset(written[name], "train", tasks=["semsge"])


def test_a_format_may_be_named(written):
    root = written["cityscapes-19-label"]
    with pytest.raises(DataError, match="format cityscapes-19"):
        open_dataset(root, "train").read(0)
    for opened in (
        open_dataset(root, "train", format="cityscapes-19"),
        open_distribution(root, "train", None, "cityscapes-19"),
    ):
        assert opened.name == "cityscapes-19" and opened.tasks["semseg"].channels == 19
        assert opened.read(0).labels["semseg"].max() == 255
    with pytest.raises(DataError, match="unknown format 'cityscape-19', did you mean 'cityscapes-19'"):
        open_dataset(root, "train", format="cityscape-19")


def test_several_formats_in_one_folder_are_not_guessed_between(written, tmp_path):
    root = shutil.copytree(written["cityscapes-7"], tmp_path / "both")
    for split in ("train", "val"):
        shutil.copytree(written["cityscapes-19"] / split / "label_19", root / split / "label_19")
    message = "holds cityscapes-7 and cityscapes-19, pass one of them as format"
    for open_it in (open_dataset, open_distribution):
        with pytest.raises(DataError, match=message):
            open_it(root, "train")
        assert len(open_it(root, "train", format="cityscapes-19")) == 2


def test_other_folders_say_what_they_hold(tmp_path):
    assert detect(tmp_path) is None
    for open_it in (open_dataset, open_distribution):
        with pytest.raises(DataError, match="is empty, expected .*pascal-context, nyud-13, .*cityscapes-raw"):
            open_it(tmp_path, "train")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").touch()
    for open_it in (open_dataset, open_distribution):
        with pytest.raises(DataError, match=r"holds notes\.txt, pictures/, expected"):
            open_it(tmp_path, "train")
    with pytest.raises(DataError, match="no such folder, expected one of pascal-context"):
        open_distribution(tmp_path / "nowhere", "train")


def test_a_folder_with_a_description_is_one_whatever_else_it_looks_like(tmp_path):
    from dmtl.data import export_folder

    root = tmp_path / "folder"
    export_folder(Scenes("train", 1, SIZE), root)
    (root / "leftImg8bit").mkdir()
    assert recognised(root) == ["cityscapes-raw"] and open_dataset(root, "train").name == "scenes"


@pytest.mark.parametrize(
    "name", ["pascal-context", "nyud-13", "nyud-40-mt", "cityscapes-19", "cityscapes-raw"]
)
def test_training_asks_for_a_conversion(written, name):
    message = rf"data\.root must be .* \({FOUND[name]} as distributed\): `dmtl data convert .* OUT`"
    for resize in (False, True):
        with pytest.raises(ConfigError, match=message):
            open_data(DataConfig(root=str(written[name]), size=(16, 16), resize=resize))


def test_identities_tell_copies_apart(written, tmp_path):
    one, other = (written["nyud-13"], shutil.copytree(written["nyud-13"], tmp_path / "copy"))
    assert open_dataset(one, "train").identity("depth") == open_dataset(one, "train").identity("depth")
    assert open_dataset(one, "train").identity("depth") != open_dataset(other, "train").identity("depth")
    assert open_dataset(one, "train").identity("depth") != open_dataset(one, "val").identity("depth")
