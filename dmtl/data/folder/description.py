"""Read and check `dataset.yaml`."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dmtl.data.base import unknown_name
from dmtl.data.folder.label_maps import READING_OPTIONS
from dmtl.data.folder.paths import inside, plain_name, read_text
from dmtl.data.images import MAX_PIXELS
from dmtl.errors import DataError, DmtlError, one_line
from dmtl.tasks import Task, check_options, find_class, make_task

MAX_DESCRIPTION = 100_000  # characters; unusual longer texts take PyYAML many seconds
KEYS = ("name", "tasks", "labels", "evaluation", "boundaries", "description")
EVALUATION = ("frame", "max_dist")


class _Plain(yaml.SafeLoader):
    """Load numbers as YAML 1.2 does (1e-3, 010), and a list as a key as a tuple.

    Duplicate keys are errors, and so are references, which can expand to any size.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a reference with *, expected the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            key = tuple(key) if isinstance(key, list) else key
            where = f"line {key_node.start_mark.line + 1}"
            try:
                twice = key in mapping
            except TypeError:  # cannot be hashed
                raise yaml.YAMLError(
                    f"{where}: a key is a mapping or contains one, expected a name"
                ) from None
            if twice:
                raise yaml.YAMLError(f"{where}: duplicate key {key!r}")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Read an integer as decimal: YAML 1.1 would read 010 as octal."""
        text = self.construct_scalar(node).replace("_", "")
        return int(text) if _DECIMAL.fullmatch(text) else self.construct_yaml_int(node)


class _Quoting(yaml.SafeDumper):
    """Write YAML that `_Plain` reads back unchanged: text that looks like a number is quoted."""


_DECIMAL = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
for kind in (_Plain, _Quoting):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    kind.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_decimal)


def description_text(content: dict[str, Any]) -> str:
    """Return `content` as the text of a dataset.yaml, which `read_description` reads back unchanged."""
    return yaml.dump(content, Dumper=_Quoting, sort_keys=False)


def read_description(root: Path) -> dict:
    """Read and check `dataset.yaml`: {"name": str, "tasks": {name: options}}, and other `KEYS` if they are
    set.

    Raises:
        DataError: the file is missing or wrong; the message names it.
    """
    path = inside(root, root / "dataset.yaml")
    return parse_description(read_text(path, "a description of the data set"), path, root.resolve().name)


def parse_description(text: str, path: Path, name: str, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Parse and check the text of a dataset.yaml.

    Args:
        text: the text.
        path: the file, for messages.
        name: name of the data set if the text does not set one.
        keys: the allowed keys.

    Raises:
        DataError: the text is not YAML, or a key or value is wrong; the message begins with `path`.
    """
    if len(text) > MAX_DESCRIPTION:
        raise DataError(f"{path}: {len(text)} characters, expected at most {MAX_DESCRIPTION}")
    try:
        content = _Plain(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"{path}: not readable YAML ({one_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict) or not content["tasks"]:
        raise DataError(f"{path}: no tasks, expected `tasks:` with one entry per task, each with its `kind`")
    for key in content:
        if key not in keys:
            raise DataError(f"{path}: {unknown_name('key', str(key), keys)}")
    taken = {"images": "the images", "splits": "the splits"}
    if "boundaries" in content:
        folder = plain_name(content["boundaries"], f"{path}: boundaries")
        if folder in taken:
            raise DataError(
                f"{path}: boundaries is {folder!r}, which is the folder of {taken[folder]}, expected another"
            )
        taken[folder] = "the boundaries"
    for task, options in content["tasks"].items():
        plain_name(task, f"{path}: name of a task")
        if task in taken:
            raise DataError(
                f"{path}: a task cannot be called {task!r}, because that is the folder of {taken[task]}, "
                "expected another name"
            )
        if not isinstance(options, dict) or any(not isinstance(key, str) for key in options):
            raise DataError(
                f"{path}: task {task!r} is {options!r:.80}, expected a mapping such as {{kind: binary}}"
            )
    if not isinstance(content.get("labels", ""), str):
        raise DataError(f"{path}: labels is {content['labels']!r:.80}, expected the name of a CSV file")
    if "evaluation" in content:
        _check_evaluation(content["evaluation"], path)
    return {**content, "name": str(content.get("name", name))}


def _check_evaluation(options: object, path: Path) -> None:
    if not isinstance(options, dict):
        raise DataError(
            f"{path}: evaluation is {options!r:.80}, expected a mapping such as {{max_dist: 0.0075}}"
        )
    for key in options:
        if key not in EVALUATION:
            raise DataError(f"{path}: evaluation: {unknown_name('key', str(key), EVALUATION)}")
    frame = options.get("frame", [1, 1])
    sides = isinstance(frame, list) and all(type(side) is int and side > 0 for side in frame)
    if not sides or len(frame) != 2 or frame[0] * frame[1] > MAX_PIXELS:
        raise DataError(
            f"{path}: evaluation: frame is {frame!r:.80}, expected [height, width] in pixels, "
            f"at most {MAX_PIXELS / 1e6:.0f} million of them"
        )
    distance = options.get("max_dist", 0.5)
    if type(distance) not in (int, float) or not 0 < distance < 1:
        raise DataError(
            f"{path}: evaluation: max_dist is {distance!r:.80}, expected a share of the image's diagonal "
            "between 0 and 1"
        )


def read_task(name: str, options: dict[str, Any], path: Path) -> tuple[Task, dict[str, Any]]:
    """Return a task of dataset.yaml, and the options for reading its files (`Task.reading`).

    Raises:
        DataError: an option is wrong; the message begins with `path`.
    """
    try:
        defining = {key: value for key, value in options.items() if key not in READING_OPTIONS}
        task_class = find_class(name, options.get("kind"))
        check_options(name, task_class, defining, also=task_class.reading_options)
        task = make_task(name, **defining)
        count = len(task.label_names)
        if count and task.ignore not in range(count, 256):
            raise DataError(
                f"task {name!r}: ignore is {task.ignore:g}, expected a pixel value up to 255 "
                "that is not a label, because these labels are stored in 8 bits"
            )
        if count > 255:
            raise DataError(f"task {name!r}: {count} classes, expected at most 255 (8-bit labels)")
        return task, task.reading({key: options[key] for key in READING_OPTIONS if key in options})
    except (DmtlError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {error}") from error
