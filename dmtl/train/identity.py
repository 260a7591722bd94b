"""Whether a stored run belongs to a configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from dmtl.train.config import RunConfig


def identity(config: RunConfig) -> dict[str, dict]:
    """Return the part of a configuration that decides the weights, with JSON's types."""
    values = dataclasses.asdict(config)
    for key in ("cache", "cache_dir", "workers", "val_count", "skip_corrupt"):
        values["data"].pop(key)
    return json.loads(json.dumps({section: values[section] for section in ("data", "model", "optim")}))


def what_changed(stored: Mapping[str, Mapping], config: RunConfig) -> str:
    """Name the first key in which a stored `identity` differs, "optim.lr was 0.001, now 0.5"; "" if none.

    A key that is newer than what is stored had its default.
    """
    defaults = identity(RunConfig())
    for section, values in identity(config).items():
        before = {**defaults[section], **stored.get(section, {})}
        for key, value in values.items():
            if before[key] != value:
                return f"{section}.{key} was {before[key]!r}, now {value!r}"
    return ""
