"""From the words of a command line to a dataclass: tyro parses; help is tidied, errors are one line."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, UnsupportedTypeAnnotationError

from dmtl.errors import ConfigError

T = TypeVar("T")

_STYLE = (tyro.conf.DisallowNone, tyro.conf.SuppressFixed)
EXPLANATION = 8  # columns that explanations are indented by, at least
_registry = ConstructorRegistry()


@_registry.primitive_rule
def _task_specifications(info) -> UnsupportedTypeAnnotationError | None:
    """`ModelConfig.tasks` comes from the data set; it has no place on a command line."""
    return UnsupportedTypeAnnotationError(()) if info.type == list[dict] else None


@_registry.primitive_rule
def _weights(info) -> PrimitiveConstructorSpec | None:
    """Numbers by name, one option whether or not the file has some already."""
    if info.type != dict[str, float]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="TASK NUMBER ...",
        instance_from_str=_named_numbers,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(x) for pair in value.items() for x in pair],
    )


def _named_numbers(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"expected a number after every name, got '{' '.join(words)}'") from None


def parse(kind: Callable[..., T], arguments: Sequence[str], command: str, **options: Any) -> T:
    """`arguments` as `kind` (a dataclass), help made from docstrings. ConfigError where they do not fit."""
    return _run(tyro.cli, kind, arguments, command, options)


def parse_subcommand(
    kinds: Mapping[str, type], arguments: Sequence[str], command: str, **options: Any
) -> Any:
    """An instance of the dataclass that the first argument names."""
    return _run(tyro.extras.subcommand_cli_from_dict, dict(kinds), arguments, command, options)


def positional(metavar: str) -> tuple:
    """Markers of an unnamed argument, called `metavar` in help: `Annotated[str, *positional("MODEL")]`."""
    return tyro.conf.arg(metavar=metavar), tyro.conf.Positional


def _run(cli: Callable, kind: Any, arguments: Sequence[str], command: str, options: dict) -> Any:
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err), _registry:
            return cli(kind, args=list(arguments), prog=f"dmtl {command}", config=_STYLE, **options)
    except SystemExit as exit:
        if exit.code:
            raise ConfigError(f"{_one_line(err.getvalue())} (dmtl {command} --help explains)") from None
        print(_readable(out.getvalue()), flush=True)
        raise


def _readable(text: str) -> str:
    """Help without tyro's frames and notation for optional values, its long first lines wrapped."""
    text = re.sub("[│╭╮╰╯]", " ", re.sub("^[╭╰]─+|─+[╮╯]$", "", text, flags=re.MULTILINE))
    text = re.sub(r"\s*\(default:\s*(None)?\)", "", text)
    # {[STR [STR ...]]} and {INT INT}
    for notation in (r"\{?\[([A-Z ]+) (?:\[\1 \.\.\.\]\]\}?)", r"\{([A-Z]+ [A-Z]+)\}"):
        text = re.sub(notation, _plain, text)
    width = max(40, shutil.get_terminal_size().columns)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(
        line if line.startswith((" ", "usage")) else textwrap.fill(line, width, break_on_hyphens=False)
        for line in _refilled(lines, width)
    )


def _refilled(lines: list[str], width: int) -> list[str]:
    """Explanations without the line breaks of their docstrings. They are indented, or stand behind what they
    explain, and go on below at the same column."""
    filled: list[str] = []
    for column, group in itertools.groupby(lines, lambda line: len(line) - len(line.lstrip())):
        if column < EXPLANATION:
            filled += group
            continue
        text, start = " ".join(line.strip() for line in group), " " * column
        if filled and re.match(rf".{{{column - 2}}}  \S", filled[-1]):
            last = filled.pop()
            start, text = last[:column], f"{last[column:]} {text}"
        below = " " * column
        filled += textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=below,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return filled


def _choices(told: re.Match) -> str:
    """The values that may be written: in one order, and without the None of an option that is left out."""
    return ", expected one of " + ", ".join(sorted(set(re.findall("'(.*?)'", told[1])) - {"None"}))


def _plain(notation: re.Match) -> str:
    """ "STR ..." or "INT INT", as wide as it was where a column follows."""
    plain = notation[1] + (" ..." if "..." in notation[0] else "")
    return plain.ljust(len(notation[0])) if notation.string.startswith("  ", notation.end()) else plain


def _one_line(message: str) -> str:
    """The gist of tyro's error page (title, rule, what is wrong, rule, advice), and the nearest option."""
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in message.splitlines()):
        if (line and not set(line) - set("─-")) or line.startswith("╭"):
            sections.append([])
        elif line and not line.startswith("╰"):
            sections[-1].append(line)
    if len(sections) < 2:
        return " ".join(message.split())
    gist = re.sub(r"^Error parsing (?:(\w+): (?=\1\.))?", "", " ".join(sections[1]))
    gist = re.sub(r"^Unrecognized options: (--[^ ,]+).*", r"unknown option \1", gist)
    gist = re.sub(r"^Missing from [a-z ]+: (.*?)( \(required\))?$", r"missing \1", gist).removesuffix(".")
    meant = [line for section in sections[2:] if section[:1] == ["Perhaps you meant:"] for line in section]
    unfit = r"no type matching (.*?) could be instantiated from \['(.*?)'\].*"
    gist = re.sub(unfit, r"expected \1, got '\2'", gist)
    gist = re.sub(r"\. Expected one of \((.*)\)$", _choices, gist)
    near = [line.split()[0].rstrip(",") for line in meant if line.startswith("--")]
    return f"{gist}, did you mean {near[0]}?" if near else gist
