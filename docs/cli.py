"""Write docs/cli.md from the parsers of the command line: `python docs/cli.py`.

A test compares the page with what it writes.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import tyro

from dmtl.cli import COMMANDS
from dmtl.cli.data import SUBCOMMANDS

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
<!-- Written by docs/cli.py from the parsers: change their docstrings, then run `python docs/cli.py`. -->

# Commands

`dmtl COMMAND --help` prints the same texts. The exit status is 0 if all is done, 1 if the listed failures
occurred, and 2 if the input is wrong (one line says why). It is 130 after Ctrl-C and 143 after SIGTERM.
`torchrun -m dmtl COMMAND` runs `train`, `eval` and `predict` on several processes.

MODEL is a run's folder, a folder with `config.json` and `model.safetensors`, the published checkpoint, an id
on the Hugging Face Hub, or `six-tasks`, the built-in model. DATA is `scenes` (rendered rooms, which need no
files), a folder with a `dataset.yaml`, shards, or for some commands a benchmark as its authors distribute it.

| command | what it does |
|---|---|
"""


class _Found(BaseException):
    """A parser on its way out of the command that made it; no `except Exception` may stop it."""


def parser_of(*words: str) -> argparse.ArgumentParser:
    """Return the parser that `dmtl WORDS ...` uses, with the defaults of this command."""

    def keep(kind: type, **options: object) -> None:
        options.pop("args")
        raise _Found(tyro.extras.get_parser(kind, **options))

    command, *rest = words
    with mock.patch("tyro.cli", keep), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # get_parser has no successor yet
        try:
            if rest:
                kind, _ = SUBCOMMANDS[rest[0]]
                import_module("dmtl.cli._arguments").parse(kind, [], " ".join(words))
            import_module(f"dmtl.cli.{command}").main([])
        except _Found as found:
            return found.args[0]
    raise AssertionError(f"dmtl {command} has no parser")


def page() -> str:
    """Return the text of the page."""
    lines = [f"| [`dmtl {name}`](#dmtl-{name}) | {text} |" for name, text in COMMANDS.items()]
    parts = [HEAD + "\n".join(lines)]
    shown: set[str] = set()
    for name, text in COMMANDS.items():
        if name == "data":
            parts.append(f"## dmtl data\n\n{text[0].upper()}{text[1:]}.")
            for subcommand in SUBCOMMANDS:
                parts += section(parser_of(name, subcommand), f"### dmtl data {subcommand}", set())
        else:
            parts += section(parser_of(name), f"## dmtl {name}", shown)
    return "\n\n".join(parts) + "\n"


def section(parser: argparse.ArgumentParser, title: str, shown: set[str]) -> Iterator[str]:
    """Yield title, usage, description and one table for each group of options.

    Args:
        shown: sections of the configuration, such as "data options", that an earlier command has listed. They
            are not repeated, and those of this command are added.
    """
    positional = [x for x in parser._actions if not x.option_strings]
    usage = " ".join([parser.prog, *map(argument, positional), "[OPTIONS]"])
    yield f"{title}\n\n```text\n{usage}\n```"
    yield re.sub(r"\n{3,}", "\n\n", escape(parser.description or "").strip())
    own, tables, repeated = [], [], []
    for group in parser._action_groups:
        rows = [row(x) for x in group._group_actions if x.dest != "help"]
        name = (group.title or "").removesuffix(" options")
        if not rows:
            continue
        if name == group.title or not name:  # positional arguments, options of the command itself
            own += rows
        elif name in shown:
            repeated.append(name)
        else:
            shown.add(name)
            about = f"**`[{name}]`** {escape(group.description or '')}".strip().replace("\n", " ")
            tables.append(f"{about}\n\n{table(rows)}")
    yield table(own)
    yield from tables
    if repeated:
        names = ", ".join(f"`[{name}]`" for name in repeated)
        yield f"And every option of [`dmtl train`](#dmtl-train) in {names}."


def table(rows: list[str]) -> str:
    """Return a table of these lines."""
    return "\n".join(["| option | meaning |", "|---|---|", *rows])


def row(action: argparse.Action) -> str:
    """Return one line of a table."""
    name = ", ".join(action.option_strings)
    if not name:
        name = argument(action)
    elif action.nargs != 0:
        name = f"{name} {metavar(action)}"
    text = (action.help or "").rstrip()
    if action.nargs == 0 and len(action.option_strings) == 1:
        text = text.replace(" (default: False)", "")
    text = re.sub(r"\(default: (.*)\)$", r"(default: `\1`)", text, flags=re.DOTALL)
    cells = (f"`{name}`", escape(text).replace("\n", " "))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def metavar(action: argparse.Action) -> str:
    """Return the placeholder of an argument without the braces that tyro adds to sequences."""
    text = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
    text = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"\1 ...", text)
    return re.sub(r"\{([A-Z. ]+)\}", r"\1", text).replace("{None}|", "")


def argument(action: argparse.Action) -> str:
    """Return the placeholder of a positional argument, in brackets if it has a default."""
    text = metavar(action)
    return f"[{text}]" if action.nargs == "?" and not text.startswith("[") else text


def escape(text: str) -> str:
    """Return text in which `<` opens no HTML, except in code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(x if x.startswith("`") else x.replace("<", "&lt;") for x in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
