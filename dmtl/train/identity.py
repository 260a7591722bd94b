"""Check whether a stored run belongs to a configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dmtl.train.config import RunConfig
from dmtl.train.setup import Data


def identity(config: RunConfig) -> dict[str, dict]:
    """Return the part of a configuration that determines the weights, with JSON types."""
    values = dataclasses.asdict(config)
    for key in ("cache", "cache_dir", "workers", "val_count", "skip_corrupt"):
        values["data"].pop(key)
    return json.loads(json.dumps({section: values[section] for section in ("data", "model", "optim")}))


def what_changed(stored: Mapping[str, Mapping], config: RunConfig) -> str:
    """Name the first key in which a stored `identity` differs, "optim.lr was 0.001, now 0.5"; "" if none.

    Keys newer than the stored identity count with their defaults.
    """
    defaults = identity(RunConfig())
    for section, values in identity(config).items():
        before = {**defaults[section], **stored.get(section, {})}
        for key, value in values.items():
            if before[key] != value:
                return f"{section}.{key} was {before[key]!r}, now {value!r}"
    return ""


def meaning_changed(state: Mapping[str, Any], data: Data) -> str:
    """Name the first task or option of dataset.yaml changed since a checkpoint was written; "" if none.

    Checkpoints of older versions do not store it.
    """
    now = data.definition()
    stored = json.loads(state["data"]) if "data" in state else now
    before, after = ([task for task, _ in tasks] for tasks in (stored, now))
    if before != after:
        return f"data: the tasks were {', '.join(before)}, now {', '.join(after)}"
    for (task, was), (_, options) in zip(stored, now, strict=True):
        for key in {**was, **options}:
            if was.get(key) != options.get(key):
                return f"data: {key} of {task} was {was.get(key)!r:.200}, now {options.get(key)!r:.200}"
    return ""
