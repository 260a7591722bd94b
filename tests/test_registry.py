"""Registries: names, errors that help, entries that load late, and names of installed packages."""

import sys

import pytest

from dmtl import registry
from dmtl.errors import ConfigError
from dmtl.registry import Registry


def test_register_and_get():
    colours = Registry("colour", {"late": "tests.test_registry:LATE"})
    assert colours.register("red")(1) == 1 and colours.get("red") == 1
    assert (
        colours.names() == ["late", "red"]
        and "red" in colours
        and "green" not in colours
        and None not in colours
    )
    with pytest.raises(ConfigError, match="colour 'red' is registered already"):
        colours.register("red")(2)
    assert colours.get("late") is LATE


LATE = object()


def test_unknown_names_list_the_nearest():
    colours = Registry("colour")
    colours.register("red")(1)
    with pytest.raises(ConfigError, match="^colour must be one of red, got 'rde'; did you mean 'red'[?]$"):
        colours.get("rde")
    with pytest.raises(ConfigError, match="^optim.colour must be one of red, got 'xyz'$"):
        colours.get("xyz", "optim.colour")


def test_names_of_an_installed_package(tmp_path, monkeypatch):
    """Its entry point is imported when a name is not known otherwise."""
    colours = Registry("colour")
    monkeypatch.setattr(registry, "COLOURS", colours, raising=False)
    (tmp_path / "paint_for_dmtl.py").write_text(
        "from dmtl import registry\nregistry.COLOURS.register('blue')(3)\n"
    )
    info = tmp_path / "paint-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paint\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dmtl]\npaint = paint_for_dmtl\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugins.cache_clear()
    try:
        assert colours.get("blue") == 3
    finally:
        sys.modules.pop("paint_for_dmtl", None)
        registry.load_plugins.cache_clear()
