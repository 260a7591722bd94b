"""No name and no link takes a reader out of its data set."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from dmtl.data.folder.paths import inner_path, inside
from dmtl.errors import DataError

# Names that the folder below has, names that climb, and whatever else can stand in a list of ids.
PARTS = [
    "images",
    "a.png",
    "up",
    "out.png",
    "far",
    "loop",
    "chain",
    "back",
    "pipe",
    "new",
    "..",
    "..",
    ".",
    "~",
    "etc",
    "passwd",
    "C:",
    "con",
    "nul",
]
PARTS += ["", " ", "a b", "\0", "\n", "\x1b[2J", "é", "\u202egnp.a", "\ud800", "x" * 300, "...", "%2e%2e"]
STARTS = ["", "", "", "/", "//", "../", "./", "C:\\", "~/"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set with honest files, links that stay inside, and links that lead out in every way."""
    base = tmp_path_factory.mktemp("paths")
    root, outside = base / "data", base / "outside"
    (root / "images").mkdir(parents=True)
    outside.mkdir()
    (base / "data-of-others").mkdir()
    for folder in (root / "images", outside, base / "data-of-others"):
        (folder / "a.png").write_bytes(b"x")
    (root / "images" / "same.png").symlink_to("a.png")  # stays inside
    (root / "back").symlink_to(root / "images")  # stays inside
    (root / "chain").symlink_to("back/../back")  # stays inside
    (root / "up").symlink_to("..")
    (root / "far").symlink_to(outside)
    (root / "beside").symlink_to(base / "data-of-others")  # its name begins as the root's
    (root / "images" / "out.png").symlink_to(outside / "a.png")
    (root / "images" / "twice.png").symlink_to("out.png")
    (root / "images" / "dangling.png").symlink_to(outside / "new.png")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "images" / "pipe")
    return root


def leaves(root: Path, name: str) -> bool:
    """Whether opening root/name would touch anything outside, by following every step as the system does."""
    try:
        real = Path(os.path.realpath(Path(root, name)))
    except ValueError:
        return True
    return root.resolve() not in (real, *real.parents)


def test_no_name_leaves_the_folder(root):
    """Of 10,000 drawn names, what passes is inside; what climbs, is absolute or leaves is refused."""
    random, passed = Random(0), 0
    for _ in range(10_000):
        parts = random.choices(PARTS, k=random.randint(1, 6))
        passed += is_harmless(root, random.choice(STARTS) + random.choice(["/", "//", "\\"]).join(parts))
    assert 500 < passed < 9500


def is_harmless(root: Path, name: str) -> bool:
    """Whether `inside` lets the name pass, its answer and that of `inner_path` held against the facts."""
    try:
        assert inner_path(name, "list") == name
    except DataError:
        pass
    else:
        assert not Path(name).is_absolute() and ".." not in Path(name).parts and "\\" not in name
    try:
        path = inside(root, root / name)
    except DataError:
        odd = {"loop", "pipe", "\ud800"} & set(Path(name).parts)  # no file, no name of one
        assert leaves(root, name) or ".." in Path(name).parts or odd
        return False
    assert not leaves(root, name) and ".." not in path.relative_to(root).parts
    return True


@pytest.mark.parametrize(
    "name", ["images/a.png", "images/same.png", "back/a.png", "chain/a.png", "images/new.png", "images"]
)
def test_links_that_stay_inside_are_followed(root, name):
    assert inside(root, root / name) == root / name


@pytest.mark.parametrize(
    "name",
    ["images/out.png", "images/twice.png", "images/dangling.png", "up/outside/a.png", "far/a.png",
     "far", "beside/a.png", "back/out.png"],
)  # fmt: skip
def test_links_out_of_the_root_are_refused(root, name):
    with pytest.raises(DataError, match="expected links to stay inside the data set") as error:
        inside(root, root / name)
    assert str(error.value).startswith(f"{root / name}: a link to ")


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside/a.png", "images/../../outside/a.png", "a\0b"])
def test_names_that_are_elsewhere_are_refused(root, name):
    with pytest.raises(DataError, match="not inside the data set, expected a path below"):
        inside(root, root / name)


@pytest.mark.parametrize("name", ["images/pipe", "loop"])
def test_what_is_no_file_is_refused(root, name):
    with pytest.raises(DataError, match=f"{name}: neither a file nor a folder"):
        inside(root, root / name)


def test_the_root_may_be_a_link_and_relative(root, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(root)
    assert inside(link, link / "back" / "a.png") == link / "back" / "a.png"
    with pytest.raises(DataError, match="a link to"):
        inside(link, link / "images" / "out.png")
    monkeypatch.chdir(root.parent)
    for place in ("data", ".", "data/../data"):
        assert inside(place, Path(place) / "images" / "a.png").name == "a.png"
    with pytest.raises(DataError, match="a link to"):
        inside("data", "data/images/out.png")
    assert inside(root, root) == root
