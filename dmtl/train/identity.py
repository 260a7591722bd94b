"""Check whether a stored run belongs to a configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dmtl.train.config import RunConfig
from dmtl.train.setup import Data


def identity(config: RunConfig) -> dict[str, dict]:
    """Return the part of a configuration that determines the trained weights, in values that JSON can
    hold."""
    values = dataclasses.asdict(config)
    for key in ("cache", "cache_dir", "workers", "val_count", "skip_corrupt"):
        values["data"].pop(key)
    return json.loads(json.dumps({section: values[section] for section in ("data", "model", "optim")}))


def what_changed(stored: Mapping[str, Mapping], config: RunConfig) -> str:
    """Return the differences to a stored `identity`, such as "optim.lr was 0.001, now 0.5"; "" if none.

    Keys that did not exist when the identity was stored count with their defaults.
    """
    defaults, changes = identity(RunConfig()), []
    for section, values in identity(config).items():
        before = {**defaults[section], **stored.get(section, {})}
        for key, value in values.items():
            if before[key] != value:
                changes.append(f"{section}.{key} was {before[key]!r}, now {value!r}")
    return "; ".join(changes)


def meaning_changed(state: Mapping[str, Any], data: Data) -> str:
    """Return the first change of tasks or of dataset.yaml since a checkpoint was written; "" if there is
    none.

    Checkpoints of older versions do not store this; then nothing is compared.
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
