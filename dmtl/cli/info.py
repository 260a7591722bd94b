"""`dmtl info`: what was built, and which backend each operator takes here; with `--model`: what a model is,
its work and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from dmtl.cli._arguments import parse

SIZES = (256, 512, 1024, 2048)  # pixels, of square images


@dataclass(frozen=True)
class Info:
    """Print versions, the native modules, and for every operator its backend here and why not the others; or
    what a model is, its work and its memory."""

    model: str | None = None
    """A run's folder, or a folder with config.json and model.safetensors: print this model instead."""
    size: tuple[int, int] | None = None
    """Height and width of the model's images; default: squares of 256, 512, 1024 and 2048 pixels."""
    batch: int | None = None
    """Images at once, default 1."""
    device: str = "auto"
    """Where the model shall predict: "auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(Info, arguments, "info")
    if args.model is None:
        alone = args.size is None and args.batch is None and args.device == "auto"
        _require(alone, "--size, --batch and --device say how a model is used: add --model MODEL")
        from dmtl.info import print_info

        print_info()
        return 0
    _require(args.size is None or min(args.size) >= 1, f"--size must be at least 1 1, got {args.size}")
    _require(args.batch is None or args.batch >= 1, f"--batch must be at least 1, got {args.batch}")
    from dmtl.cli._common import model_folder
    from dmtl.cli._model_info import model_facts, print_model
    from dmtl.models import load_model
    from dmtl.runtime.devices import pick_device

    model = load_model(model_folder(args.model))
    sizes = [args.size] if args.size else [(side, side) for side in SIZES]
    print_model(args.model, model_facts(model, pick_device(args.device), sizes, args.batch or 1))
    return 0


def _require(condition: bool, message: str) -> None:
    from dmtl.errors import ConfigError

    if not condition:
        raise ConfigError(message)
