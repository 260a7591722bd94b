"""Define the methods of a results table: one run configuration, and the settings that each method changes.

    [methods.stl]                    # one run for each task
    single_task = true
    model = {diffusion = "none"}
    [methods.alone]                  # one run for each of the sources in data.sources
    single_source = true
    model = {diffusion = "none"}
    [methods.mtl]
    label = "MTL"                    # in the table; default: the name
    model = {diffusion = "none"}
    [methods.mtl-equal-time]
    like = "mtl"                     # starts from that method's settings
    time_of = "feature"              # as many steps as fit into that method's training time
    [methods.feature]

`methods.baseline` names the reference for Delta_MTL; the default is "mtl". A file without the section
[methods] compares its own configuration with the baseline at equal steps and at equal time. Every method runs
once per seed. Initialisation, order, augmentation and noise depend on the seed; data and labels do not.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dmtl.errors import ConfigError, did_you_mean
from dmtl.fields import convert_fields
from dmtl.train.config import DataConfig, RunConfig
from dmtl.train.jobs import Job, finished
from dmtl.train.setup import open_split
from dmtl.train.toml import override

SECTIONS = ("data", "model", "optim", "execution", "log")
DEFAULT = {
    "diffusion": {},
    "mtl": {"model": {"diffusion": "none"}},
    "mtl_equal_time": {"like": "mtl", "time_of": "diffusion"},
}
FILE = "claim.json"
"""Name of the file with the results of a table, in its folder."""


@dataclass
class _Section:
    """The keys that a section [methods.NAME] may have."""

    label: str
    like: str
    time_of: str
    single_task: bool
    single_source: bool
    data: dict
    model: dict
    optim: dict
    execution: dict
    log: dict


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: name in the configuration and of the folder of its runs.
        label: name in the table.
        config: its configuration, except seed, folder and, with `time_of`, the number of steps.
        like: name of the method whose settings it starts from.
        time_of: name of the method whose training time it gets; needs `like`.
        parts: the data of each run if a seed needs several, by the name of its task or source; None: one run
            learns everything.
    """

    name: str
    label: str
    config: RunConfig
    like: str | None = None
    time_of: str | None = None
    parts: dict[str, DataConfig] | None = None

    @property
    def sources(self) -> list[str]:
        """Return the methods whose runs determine how many steps fit into the training time."""
        return [name for name in (self.like, self.time_of) if self.time_of and name is not None]

    def folders(self, out: str | Path, seed: int) -> dict[str | None, Path]:
        """Return the folder of every run with this seed, by part (None: the whole)."""
        folder = Path(out) / f"seed{seed}" / self.name
        return {None: folder} if self.parts is None else {part: folder / part for part in self.parts}


@dataclass(frozen=True)
class Claim:
    """The methods of a table by name, and the name of the baseline."""

    methods: dict[str, Method]
    baseline: str

    def with_needed(self, names: Iterable[str]) -> set[str]:
        """Return these methods and those whose training time they need.

        Raises:
            ConfigError: a name is unknown.
        """
        needed: set[str] = set()
        for name in names:
            method = self.methods[_known("methods", name, self.methods)]
            needed |= {name, *method.sources}
        return needed

    def jobs(self, out: str | Path, seeds: Iterable[int], wanted: Iterable[str]) -> list[Job]:
        """Return the runs of the requested methods and finished runs of the others, seed by seed."""
        found = []
        for seed in seeds:
            folders = {name: method.folders(out, seed) for name, method in self.methods.items()}
            for name, method in self.methods.items():
                needs = [path for other in method.sources for path in folders[other].values()]
                for part, folder in folders[name].items():
                    label = f"seed {seed}: {name}" + (f", {part}" if part else "")
                    config = partial(self._config, method, seed, part, folder, needs)
                    if name in wanted or finished(folder):
                        found.append(Job(label, folder, tuple(needs), config))
        return found

    def _config(
        self, method: Method, seed: int, part: str | None, folder: Path, needs: Sequence[Path]
    ) -> RunConfig:
        """Return the configuration of one run; the runs in `needs` are finished."""
        config = method.config
        data = config.data if part is None or method.parts is None else method.parts[part]
        optim = dataclasses.replace(config.optim, seed=seed)
        if needs:
            own, *others = (json.loads((path / "metrics.json").read_text(encoding="utf-8")) for path in needs)
            steps = max(1, round(own["step"] * sum(other["seconds"] for other in others) / own["seconds"]))
            # Scale the warm-up with the length of the run, to keep the shape of the schedule.
            warmup = round(optim.warmup * steps / own["step"])
            optim = dataclasses.replace(optim, steps=steps, epochs=0, warmup=warmup)
        return dataclasses.replace(config, out=str(folder), data=data, optim=optim)


def claim_of(config: RunConfig, section: object = None) -> Claim:
    """Return the table described by a configuration and its section `[methods]`.

    Args:
        config: the configuration that the methods change.
        section: the result of `read_methods`; None: compare the configuration itself with its baselines.

    Raises:
        ConfigError: the section is wrong; the message names the method and the key.
    """
    if section is None:
        if config.model.diffusion == "none":
            raise ConfigError(
                'model.diffusion must be "feature" or "prediction" to be compared with the baseline, '
                'got "none"; or describe the methods in a section [methods]'
            )
        section = DEFAULT
    if not isinstance(section, Mapping):
        raise ConfigError(f"methods must be a table, got {section!r:.200}")
    tables = dict(section)
    baseline = tables.pop("baseline") if isinstance(tables.get("baseline"), str) else None
    for name, values in tables.items():
        _check(name, values, tables)
    methods = {name: _method(name, config, tables) for name in tables}
    if baseline is None and "mtl" not in methods:
        raise ConfigError(
            'methods.baseline must name the reference method for Delta_MTL, since none is "mtl" '
            f"(methods: {', '.join(methods) or 'none'})"
        )
    return Claim(methods, _known("methods.baseline", baseline or "mtl", methods))


def _check(name: str, values: Any, tables: Mapping[str, Mapping]) -> None:
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(
            f"methods.{name!r} must use only letters, digits, - and _: it becomes a folder name"
        )
    convert_fields(_Section, values, f"methods.{name}.")
    for key in ("like", "time_of"):
        if key in values:
            other = _known(f"methods.{name}.{key}", values[key], tables)
            if other == name or (isinstance(tables[other], Mapping) and key in tables[other]):
                raise ConfigError(f"methods.{name}.{key} must name a method without {key}, got {other!r}")
    if "time_of" in values and "like" not in values:
        raise ConfigError(
            f"methods.{name}.time_of needs methods.{name}.like, a method with the same time per step"
        )


def _method(name: str, config: RunConfig, tables: Mapping[str, Mapping]) -> Method:
    own = tables[name]
    prefix = f"methods.{name}"
    single = dict.fromkeys(PARTS, False)
    for values in (tables[own["like"]], own) if "like" in own else (own,):
        single |= {key: values[key] for key in single if key in values}
        _check_shared(prefix, values)
        changes = {key: values[key] for key in SECTIONS if key in values}
        try:
            config = override(config, changes, prefix + ".")
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(prefix) else f"{prefix}: {text}") from None
    kinds = [key for key in single if single[key]]
    together = [*kinds, "time_of"] if "time_of" in own else kinds
    if kinds and len(together) > 1:
        raise ConfigError(f"{prefix}: {' and '.join(together)} cannot be combined; remove one of them")
    if single["single_source"] and not config.data.sources:
        raise ConfigError(f"{prefix}.single_source needs data.sources, and the configuration has none")
    parts = PARTS[kinds[0]](config.data) if kinds else None
    return Method(name, own.get("label", name), config, own.get("like"), own.get("time_of"), parts)


def _check_shared(prefix: str, values: Mapping) -> None:
    """Check that a method leaves alone what all methods of a table share: its data and the seeds."""
    for section, key in (("data", "root"), ("data", "sources"), ("optim", "seed")):
        if key in values.get(section, ()):
            remedy = "use --seeds" if key == "seed" else f"set {section}.{key} outside of [methods]"
            raise ConfigError(
                f"{prefix}.{section}.{key}: all methods of a table have the same data and seeds; {remedy}"
            )


def _by_task(data: DataConfig) -> dict[str, DataConfig]:
    tasks = data.tasks if data.tasks is not None else open_split(data, "train").tasks
    return {task: dataclasses.replace(data, tasks=[task]) for task in tasks}


def _by_source(data: DataConfig) -> dict[str, DataConfig]:
    return {source.name: dataclasses.replace(data, sources=[source]) for source in data.sources}


PARTS = {"single_task": _by_task, "single_source": _by_source}
"""What a method of several runs is divided by: the key that asks for it, and the data of each run."""


def _known(where: str, name: str, methods: Iterable[str]) -> str:
    """Return `name` if it is one of the methods; raise ConfigError otherwise."""
    if name not in methods:
        hint = did_you_mean(name, methods)
        raise ConfigError(f"{where}: no method is named {name!r}{hint} (methods: {', '.join(methods)})")
    return name
