"""Registries: names that a configuration may use, and what they stand for.

    SAMPLERS = Registry("sampler")

    @SAMPLERS.register("ddim")
    def ddim(abar): ...

    SAMPLERS.get("ddim")          # ConfigError for an unknown name, with the nearest known one

`docs/extending.md` shows how to add a name to each of them. Before a name is refused, installed packages may
add it: their entry points of the group "dmtl" are imported, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dmtl.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order in which they were registered.

    Args:
        kind: what an entry is, in the words of error messages.
        known: entries of this package as "module:attribute", imported when they are first used.
    """

    def __init__(self, kind: str, known: dict[str, str] | None = None):
        self.kind = kind
        self._entries: dict[str, T | str] = dict(known or {})

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under `name`.

        Raises:
            ConfigError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered already; choose another name")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str, key: str | None = None) -> T:
        """Return what `name` stands for.

        Args:
            key: the configuration key that holds the name, for the error message; default `kind`.

        Raises:
            ConfigError: the name is unknown; the message lists the known ones and the nearest of them.
        """
        if name not in self:
            hint = did_you_mean(name, self._entries)
            known = ", ".join(self._entries)
            raise ConfigError(f"{key or self.kind} must be one of {known}, got {name!r:.80}{hint}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = self._entries[name] = getattr(import_module(module), attribute)
        return entry

    def names(self) -> list[str]:
        """Return the registered names, those of installed packages included."""
        load_plugins()
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries


@cache
def load_plugins() -> None:
    """Import what installed packages offer as entry points of the group "dmtl"."""
    for entry in entry_points(group="dmtl"):
        entry.load()
