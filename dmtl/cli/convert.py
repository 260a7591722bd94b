"""`dmtl convert`: convert the published checkpoint to our format, or back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from dmtl.cli._arguments import parse, positional
from dmtl.cli._common import say


@dataclass(frozen=True)
class Convert:
    """Convert a published checkpoint (.pth.tar) to a model folder or, with --to-official, back.

    Only tensors and plain containers are unpickled. S and the noise schedule come from the file's buffers.
    """

    source: Annotated[str, *positional("SOURCE")]
    """The published file, or (--to-official) a model folder."""
    target: Annotated[str, *positional("TARGET")]
    """The folder to write, or (--to-official) the file."""
    to_official: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the published format."""


def main(arguments: list[str]) -> int:
    args = parse(Convert, arguments, "convert")
    from dmtl.models import from_pretrained
    from dmtl.models.published import convert_official, convert_to_official

    if args.to_official:
        convert_to_official(from_pretrained(args.source), args.target)
    else:
        model = convert_official(args.source, args.target)
        count = sum(p.numel() for p in model.parameters())
        say(
            f"{count / 1e6:.2f} M parameters, S = {model.mtdnet.schedule.steps}, "
            f"tasks: {', '.join(f'{t} ({c})' for t, c in model.channels.items())}"
        )
    say(f"wrote {args.target}")
    return 0
