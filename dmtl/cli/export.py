"""`dmtl export`: write a model as one file that runs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dmtl.cli._arguments import MODEL, naming_options, parse
from dmtl.cli._common import say


@dataclass(frozen=True)
class Export:
    """Write a model as one file that runs without dmtl, and check that its output matches the model's.

    The file is run before it is saved under its name, and must agree with the model to 1e-4. It accepts any
    batch size, and its metadata describes inputs and outputs.
    """

    model: Annotated[str, *MODEL]
    format: Literal["onnx", "pt2", "program"] = "onnx"
    """onnx: for onnxruntime and others; pt2: machine code, run by PyTorch (AOTInductor); program: a graph of
    plain PyTorch operators (torch.export)."""
    out: str | None = None
    """File to write; default: model.onnx or model.pt2."""
    size: tuple[int, int] = (512, 512)
    """Height and width of the images, which are fixed in the file; with --dynamic, the largest ones."""
    dynamic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Allow any height and width from 64 to --size that are multiples of 32 (onnx, program)."""
    opset: int | None = None
    """Version of the ONNX operators; default: the exporter's."""
    tasks: list[str] | None = None
    """Tasks to predict; default: all."""
    steps: int | None = None
    """Denoising steps; default: as trained."""
    sampler: str | None = None
    """Sampler: "ancestral", "ddim", "dpmpp_2m" or a registered one; default: as trained."""
    seed: int = 0
    """Seed of the chain's noise, which is stored in the file."""
    what: Literal["maps", "logits"] = "maps"
    """maps: class ids, probabilities, values, unit vectors; logits: before decoding."""
    input: Literal["float32", "uint8"] = "float32"
    """float32: ImageNet-normalised images; uint8: RGB, normalised in the file."""
    device: str = "cpu"
    """Target device of pt2 and program: "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Export, arguments, "export")
    from dmtl.engine.export import FORMATS, export_model
    from dmtl.models import from_pretrained

    with naming_options(args):
        exported = export_model(
            from_pretrained(args.model),
            args.out or f"model{FORMATS[args.format].suffix}",
            format=args.format,
            size=args.size,
            tasks=args.tasks,
            steps=args.steps,
            sampler=args.sampler,
            seed=args.seed,
            what=args.what,
            input=args.input,
            device=args.device,
            dynamic=args.dynamic,
            opset=args.opset,
        )
    for task, about in exported.description["outputs"].items():
        shape = ", ".join(str(side) for side in about["shape"])
        say(
            f"{task}: {about['meaning']}, {about['dtype']} [{shape}], "
            f"largest difference {exported.differences[task]:.1e}"
        )
    say(f"wrote {exported.path} ({exported.path.stat().st_size / 1e6:.1f} MB)")
    return 0
