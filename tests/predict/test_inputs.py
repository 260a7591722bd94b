"""Which files are found, and what their outputs are called."""

import os

import pytest

from dmtl.predict.inputs import find_inputs


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def names(root, paths, out="out"):
    inputs, failures, _ = find_inputs([root / p for p in paths], root / out)
    return [i.name for i in inputs], [(os.path.relpath(f.path, root), f.reason) for f in failures]


def test_folder_is_searched_to_any_depth_and_mirrored(tmp_path):
    touch(
        tmp_path,
        "in/b.PNG",
        "in/a.jpg",
        "in/deep/er/c.tiff",
        "in/notes.txt",
        "in/.hidden.png",
        "in/.cache/d.png",
    )
    assert names(tmp_path, ["in"]) == (["a", "b", "deep/er/c"], [])


def test_files_are_called_by_their_name_and_taken_once(tmp_path):
    touch(tmp_path, "x/a.jpg", "y/b.weird")
    assert names(tmp_path, ["x/a.jpg", "y/b.weird", "x/../x/a.jpg", "x"]) == (["a", "b"], [])


def test_equal_names_in_different_folders_stay_apart(tmp_path):
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.jpg")
    assert names(tmp_path, ["x", "y"])[0] == ["x/a", "y/a", "y/b"]
    assert names(tmp_path, ["x/a.jpg", "y/a.jpg"])[0] == ["x/a", "y/a"]


def test_files_that_differ_in_suffix_alone_keep_it(tmp_path):
    touch(tmp_path, "a.jpg", "a.png", "b.png", "B.jpg")
    assert sorted(names(tmp_path, ["."])[0]) == ["B.jpg", "a.jpg", "a.png", "b.png"]


@pytest.mark.parametrize(
    "files", [["a.jpg", "a.png", "a.jpg.png"], ["a.png", "a.tif", "a.png.tif", "A.PNG.bmp"]]
)
def test_no_two_outputs_share_a_name(tmp_path, files):
    touch(tmp_path, *files)
    found = names(tmp_path, ["."])[0]
    assert len({n.lower() for n in found}) == len(files)


def test_outputs_inside_the_input_folder_are_not_inputs(tmp_path):
    touch(tmp_path, "a.jpg", "out/semseg/a.png")
    assert names(tmp_path, ["."], "out")[0] == ["a"]


def test_of_a_data_set_only_images_are_inputs(tmp_path):
    """They are named by their ids, or by their paths if the given folder holds the data set."""
    files = ("dataset.yaml", "images/a.jpg", "images/b/c.png", "depth/a.png", "edge/a.png", "samples.png")
    touch(tmp_path, *(f"in/set/{file}" for file in files), "in/d.jpg", "in/dataset.yaml")
    assert names(tmp_path, ["in/set"]) == (["a", "b/c"], [])
    assert names(tmp_path, ["in"]) == (["d", "set/images/a", "set/images/b/c"], [])
    assert names(tmp_path, ["in/set/depth"]) == (["a"], [])
    assert names(tmp_path, ["in/set", "in/set/images"]) == (["a", "b/c"], [])
    _, _, [group] = find_inputs([tmp_path / "in/set"], tmp_path / "out")
    assert str(group) == ("4 files and folders of a data set (dataset.yaml, ...): only its images are inputs")


def test_missing_and_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    found, failures = names(tmp_path, ["empty", "nowhere.jpg"])
    assert found == []
    assert failures[0] == ("empty", "no images or videos, expected files such as .jpg, .png or .mp4")
    assert failures[1] == ("nowhere.jpg", "does not exist, expected an image, a video or a folder of them")


def left_out(root, paths):
    _, _, left = find_inputs([root / p for p in paths], root / "out")
    return {group.kind: (group.count, os.path.relpath(group.first, root)) for group in left}


def test_what_is_left_out_is_counted(tmp_path):
    touch(
        tmp_path,
        "in/a.jpg",
        "in/b.GIF",
        "in/sub/c.gif",
        "in/d.jp2",
        "in/README",
        "in/.DS_Store",
        "in/.git/x.png",
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    assert left_out(tmp_path, ["in", "in/sub", "in/d.jp2"]) == {
        ".gif": (2, "in/b.GIF"),
        "hidden": (2, "in/.git"),
        "links to folders": (1, "in/link"),
        "without suffix": (1, "in/README"),
        ".jp2": (1, "in/d.jp2"),
    }
    *_, left = find_inputs([tmp_path / "in"], tmp_path / "out")
    assert str(left[1]) == "2 .gif (b.GIF, ...): not a suffix of images or videos that can be read"


@pytest.mark.parametrize("place", ["maps", "deep/er/maps", "maps/of/maps"])
def test_folders_that_dmtl_wrote_are_no_inputs(tmp_path, place):
    touch(tmp_path, "in/a.jpg", f"in/{place}/semseg/a.png", f"in/{place}/overview/a.png")
    (tmp_path / "in" / place / "maps.json").write_text('{"format": "dmtl maps 1"}')
    assert names(tmp_path, ["in"]) == (["a"], [])
    assert left_out(tmp_path, ["in"]) == {"folders of maps": (1, f"in/{place}")}
    for given in (f"in/{place}", f"in/{place}/overview"):
        found, failures = names(tmp_path, [given, "in"])
        assert found == ["a"] and failures == [
            (given, "holds maps that dmtl wrote, expected images or videos")
        ]


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": "coco"}', "{", ""])
def test_maps_json_of_other_programs(tmp_path, content):
    touch(tmp_path, "in/a.jpg", "in/game/level.png")
    (tmp_path / "in/game/maps.json").write_text(content)
    assert names(tmp_path, ["in"])[0] == ["a", "game/level"]
