"""Check plain values, as TOML and JSON files have them, against the fields of a configuration class."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from dmtl.errors import ConfigError, nearest


def convert_fields(cls: type, values: object, prefix: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Return `values` with every value of its field's type, sections as dictionaries.

    Integers pass for floats; nothing else is converted silently.

    Args:
        cls: a dataclass; fields may be dataclasses, too.
        prefix: the section that the keys are in, "optim.", for messages.
        also: names that are known to the caller, for the hint at a typo.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be a table, got {values!r:.200}")
    kinds = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        require_known(key, known, prefix, also)
    return {key: _convert(kinds[key], value, prefix + key) for key, value in values.items()}


def check_fields(instance: Any, prefix: str) -> None:
    """Raise ConfigError unless every field of a dataclass's instance has its type."""
    names = (f.name for f in dataclasses.fields(instance))
    convert_fields(type(instance), {name: getattr(instance, name) for name in names}, prefix)


def require_known(key: str, known: Iterable[str], prefix: str, also: Iterable[str] = ()) -> None:
    """Raise ConfigError, with the nearest known key, for one that is not known."""
    known = list(known)
    if key not in known:
        near = nearest(key, [*known, *also])
        hint = f"; did you mean {prefix + near!r}?" if near else ""
        raise ConfigError(f"{prefix}{key} is not a known key{hint} (known here: {', '.join(known)})")


def _convert(kind: Any, value: Any, key: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return convert_fields(kind, value, key + ".")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kind = next(a for a in arguments if a is not type(None))
        return None if value is None else _convert(kind, value, key)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):
            return value
        raise ConfigError(f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(arguments):
            return tuple(_convert(a, v, key) for a, v in zip(arguments, value, strict=True))
        raise ConfigError(f"{key} must be a list of {len(arguments)} values, got {value!r}")
    if origin is list:
        if isinstance(value, (list, tuple)):
            several = dataclasses.is_dataclass(arguments[0])
            return [_convert(arguments[0], v, f"{key}[{n}]" if several else key) for n, v in enumerate(value)]
        raise ConfigError(f"{key} must be a list, got {value!r:.200}")
    if kind is dict or origin is dict:
        if isinstance(value, Mapping):
            inner = arguments[1] if arguments else Any
            return {k: v if inner is Any else _convert(inner, v, f"{key}.{k}") for k, v in value.items()}
        raise ConfigError(f"{key} must be a table, got {value!r:.200}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{key} must be of type {kind.__name__}, got {value!r}")
