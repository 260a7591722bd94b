"""Parse a command line into a dataclass with tyro."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
    UnsupportedTypeAnnotationError,
)

from dmtl.errors import ConfigError

T = TypeVar("T")

_STYLE = (tyro.conf.DisallowNone, tyro.conf.SuppressFixed)
_registry = ConstructorRegistry()


@_registry.primitive_rule
def _tables(info: PrimitiveTypeInfo) -> UnsupportedTypeAnnotationError | None:
    """Keep lists of tables off the command line: `ModelConfig.tasks`, which comes from the data set, and
    `DataConfig.sources`."""
    inner = get_args(info.type) if get_origin(info.type) is list else ()
    tables = any(kind is dict or is_dataclass(kind) for kind in inner)
    return UnsupportedTypeAnnotationError(()) if tables else None


@_registry.primitive_rule
def _weights(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Read numbers by name as one option, whether or not the file has some already."""
    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME NUMBER ...",
        instance_from_str=_named_numbers,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(x) for pair in value.items() for x in pair],
    )


@_registry.struct_rule
def _one_default(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Leave "(default: None)" out of the help: docstrings say what None means."""
    if not is_dataclass(info.type) or info in _inside:
        return None
    _inside.append(info)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)  # by the rules of tyro
    finally:
        _inside.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    kinds: list[Any] = [Annotated[f.type, _HINT] for f in spec.fields]
    fields = (replace(f, type=kind) for f, kind in zip(spec.fields, kinds, strict=True))
    return replace(spec, fields=tuple(fields))


_inside: list[StructTypeInfo] = []  # that `_one_default` asks tyro about


def _default_hint(default: str) -> str:
    return f"(default: {default})" if default not in ("None", "") else ""


_HINT: Any = tyro.conf.arg(help_behavior_hint=_default_hint)


def _named_numbers(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"expected a number after every name, got '{' '.join(words)}'") from None


def parse(kind: Callable[..., T], arguments: Sequence[str], command: str, **options: Any) -> T:
    """Return `arguments` as `kind`, a dataclass whose docstrings are the help.

    Raises:
        SystemExit: after the help, with status 0; after an error about invalid arguments, with 2.
    """
    with _registry:
        return tyro.cli(kind, args=list(arguments), prog=f"dmtl {command}", config=_STYLE, **options)


def parse_subcommand(
    kinds: Mapping[str, type], arguments: Sequence[str], command: str, **options: Any
) -> Any:
    """Return an instance of the dataclass that the first argument names; raises as `parse`."""
    with _registry:
        return tyro.extras.subcommand_cli_from_dict(
            dict(kinds), args=list(arguments), prog=f"dmtl {command}", config=_STYLE, **options
        )


def check_at_least(args: object, **least: int) -> None:
    """Check that these options are at least so large; None is allowed, and of several numbers each counts.

    Raises:
        ConfigError: an option is smaller; the message names it.
    """
    for name, bound in least.items():
        value = getattr(args, name)
        numbers = value if isinstance(value, (tuple, list)) else [] if value is None else [value]
        if any(number < bound for number in numbers):
            got = " ".join(map(str, numbers))
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {bound}, got {got}")


def check_json(path: str | None) -> None:
    """Check that --json does not replace a file of another kind, such as a configuration.

    Raises:
        ConfigError: the file exists and its name does not end in .json.
    """
    if path is not None and Path(path).suffix != ".json" and Path(path).is_file():
        raise ConfigError(f"--json: {path} exists and is not a .json file; choose another name")


@contextmanager
def naming_options(args: object) -> Iterator[None]:
    """Name options in errors of functions: "Engine: tile must be ..." becomes "--tile must be ..."."""
    try:
        yield
    except ConfigError as error:
        found = re.match(r"\w+: (\w+) must ", str(error))
        if found is None or not hasattr(args, found[1]):
            raise
        option = f"--{found[1].replace('_', '-')}"
        raise ConfigError(option + str(error)[found.end(1) :]) from None


def positional(metavar: str, help: str | None = None) -> tuple:
    """Return the markers of a positional argument, named `metavar` in the help:
    `Annotated[str, *positional("MODEL")]`. Its help is `help`, or its docstring."""
    return tyro.conf.arg(metavar=metavar, help=help), tyro.conf.Positional


MODEL = positional(
    "MODEL",
    "A run's folder, a model folder, a published file (.pth.tar), an id on the Hub (org/name), or six-tasks, "
    "the model that comes with dmtl.",
)
"""The markers of the argument that names a model."""

Source = Annotated[str, *positional("[DATA]")]
"""The argument that names a data set."""
