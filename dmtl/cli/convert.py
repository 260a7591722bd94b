"""`dmtl convert`: write a model as a model folder, or in the published format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmtl.cli._arguments import MODEL, parse, positional
from dmtl.cli._common import say
from dmtl.errors import ConfigError


@dataclass(frozen=True)
class Convert:
    """Write a model as a model folder or, with --to-official, as a published checkpoint (.pth.tar).

    From a published checkpoint, only tensors and plain containers are unpickled; the number of steps and the
    noise schedule come from its buffers. If MODEL is a finished run, its network, training and metrics are
    written to the model card (README.md in TARGET); the rest of an existing card is kept.
    """

    model: Annotated[str, *MODEL]
    target: Annotated[str, *positional("TARGET")]
    """The folder to write, or (--to-official) the file."""
    half: tyro.conf.FlagCreatePairsOff[bool] = False
    """Store the weights of convolutions and linear layers in float16, which takes half the space. Loading
    converts them back to float32."""
    to_official: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the published format."""


def main(arguments: list[str]) -> int:
    args = parse(Convert, arguments, "convert")
    from dmtl.models import DiffusionMTL
    from dmtl.models.pretrained import CARD, from_pretrained
    from dmtl.models.published import convert_to_published
    from dmtl.models.weights import WEIGHTS
    from dmtl.report.runs.card import model_card
    from dmtl.report.runs.run import TRAINING, read_run
    from dmtl.runtime.files import write_text

    if args.to_official and args.half:
        raise ConfigError("--half is for model folders, the published format has float32 alone")
    model = from_pretrained(args.model)
    target = Path(args.target)
    if args.to_official:
        convert_to_published(model, target)
        say(f"wrote {target}")
        return 0
    finished = (Path(args.model) / TRAINING).is_file()
    card = model_card(read_run(args.model), model, target / CARD) if finished else None
    model.save_pretrained(target, half=args.half)
    if card is not None:
        write_text(target / CARD, card)
    count = sum(p.numel() for p in model.parameters())
    tasks = ", ".join(f"{task} ({channels})" for task, channels in model.channels.items())
    steps = f", S = {model.mtdnet.schedule.steps}" if isinstance(model, DiffusionMTL) else ""
    say(f"{count / 1e6:.2f} M parameters{steps}, tasks: {tasks}")
    say(f"wrote {target} ({(target / WEIGHTS).stat().st_size / 1e6:.1f} MB)")
    return 0
