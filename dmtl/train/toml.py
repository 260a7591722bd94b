"""Read and write configurations as TOML. A file may extend others; every key is checked.

    extends = "base.toml"                 # or a list; relative to this file
    out = "runs/mine"
    [optim]
    lr = 1e-4

A file overrides the values of the files that it extends, and later files of a list override earlier ones.
Tables are merged key by key, including `optim.task_weights` and `optim.objectives`; everything else,
including lists, is replaced.

The section `[methods]` is for `dmtl claim` (`dmtl.train.claim`); it is not part of a run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path

from dmtl.errors import ConfigError
from dmtl.fields import convert_fields
from dmtl.train.config import RunConfig

METHODS = "methods"


def read_config(path: str | os.PathLike) -> RunConfig:
    """Read a TOML file and the files that it extends.

    Raises:
        ConfigError: a file cannot be read, or a key or value is wrong. The message names the file, the files
            that extend it, the key and, for an unknown key, the nearest known one.
    """
    values = _resolved((Path(path),))
    values.pop(METHODS, None)
    try:
        return config_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def as_config(config: RunConfig | Mapping | str | os.PathLike) -> RunConfig:
    """Return a configuration from a `RunConfig`, the path of a TOML file, or nested tables."""
    if isinstance(config, RunConfig):
        return config
    return config_from_dict(config) if isinstance(config, Mapping) else read_config(config)


def read_methods(path: str | Path) -> object:
    """Return the section `[methods]` of a TOML file and the files it extends, unchecked; None if there is
    none."""
    return _resolved((Path(path),)).get(METHODS)


def override(config: RunConfig, values: Mapping, prefix: str) -> RunConfig:
    """Return the configuration with some values overridden, as a file that extends it would do.

    Raises:
        ConfigError: a key is unknown or a value is invalid. The message begins with `prefix`, which says
            where the values come from.
    """
    typed = convert_fields(RunConfig, values, prefix)
    return _build(RunConfig, _merge(dataclasses.asdict(config), typed))


def config_from_dict(values: Mapping) -> RunConfig:
    """Build a RunConfig from nested tables; raise ConfigError for unknown keys and wrong types or values."""
    return _build(RunConfig, convert_fields(RunConfig, values, ""))


def write_config(config: RunConfig, path: str | Path) -> None:
    """Write the complete configuration as TOML, which `read_config` reads."""
    from dmtl.runtime.files import write_text

    write_text(path, to_toml(config))


def to_toml(config: RunConfig) -> str:
    """Return TOML text: plain keys first, then one table per section.

    Keys with the value None are omitted, because TOML has no such value.
    """
    values = dataclasses.asdict(config)
    tables = {key: values.pop(key) for key, value in list(values.items()) if isinstance(value, dict)}
    text = [_assignment(k, v) for k, v in values.items() if v is not None]
    for name, table in tables.items():
        text += ["", f"[{name}]"] + [_assignment(k, v) for k, v in table.items() if v is not None]
    return "\n".join(text) + "\n"


def _resolved(chain: tuple[Path, ...]) -> dict:
    """Read the last file of `chain` and merge it with the files it extends; each file of `chain` extends the
    next."""
    path, told = chain[-1], ": extends ".join(map(str, chain))
    if path.resolve() in [earlier.resolve() for earlier in chain[:-1]]:
        raise ConfigError(f"{told}: a configuration must not extend itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{told}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{told}: not valid TOML ({error})") from None
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{told}: extends must be the name of a file or a list of names, got {bases!r}")
    try:
        # Check the keys here, where it is known which file they are in.
        own = {key: value for key, value in values.items() if key != METHODS}
        convert_fields(RunConfig, own, "", also=("extends", METHODS))
    except ConfigError as error:
        raise ConfigError(f"{told}: {error}") from None
    merged: dict = {}
    for base in bases:
        merged = _merge(merged, _resolved((*chain, path.parent / base)))
    return _merge(merged, values)


def _merge(below: Mapping, above: Mapping) -> dict:
    """Merge `above` over `below`, tables key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _assignment(key: str, value: object) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        inside = (f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        lines = bool(value) and all(isinstance(v, dict) for v in value)
        text = (",\n" if lines else ", ").join(_toml(v) for v in value)
        return f"[\n{text},\n]" if lines else f"[{text}]"
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, str):  # JSON and TOML have the same escapes, except for characters beyond 16 bits
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def _build(cls: type, arguments: Mapping) -> typing.Any:
    """Build a configuration class, including its nested sections."""
    kinds = typing.get_type_hints(cls)
    return cls(**{name: _built(kinds[name], value) for name, value in arguments.items()})


def _built(kind: typing.Any, value: typing.Any) -> typing.Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value)
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return [_built(inner, item) for item in value]
    return value
