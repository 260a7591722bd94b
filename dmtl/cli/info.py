"""`dmtl info`: what was built, and which backend each operator takes here."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.cli._arguments import parse


@dataclass(frozen=True)
class Info:
    """Print versions, the native modules, and for every operator its backend here and why not the others."""


def main(arguments: list[str]) -> int:
    parse(Info, arguments, "info")
    from dmtl.info import print_info

    print_info()
    return 0
