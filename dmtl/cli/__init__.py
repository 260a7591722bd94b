"""The command line: `dmtl COMMAND ...`. Commands are modules here with `main(arguments) -> exit status`."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

from dmtl import __version__
from dmtl.errors import DmtlError, did_you_mean

COMMANDS = {
    "demo": "start here: train on rendered scenes, compare with the baseline, write a report",
    "train": "train a model from a TOML file and options",
    "eval": "evaluate a trained model on a data set",
    "predict": "predict images, videos and folders: try `dmtl predict photo.jpg`",
    "claim": "train several methods over several seeds and compare them with a baseline",
    "report": "show or compare runs, or print the paper's tables; also as a page or as files",
    "app": "show the maps of your photos in the browser",
    "export": "export a model as one file that runs without dmtl: ONNX or .pt2",
    "convert": "write a model folder or the published checkpoint from any model",
    "data": "check, show, import, convert or export a data set; choose labels",
    "info": "show what was built and which backend each operator uses here; or describe a model",
}

USAGE = (
    "usage: dmtl COMMAND [OPTIONS]\n\n"
    "Learn several dense prediction tasks from partially labelled images (DiffusionMTL).\n\ncommands:\n"
    + "\n".join(f"  {name:9}{text}" for name, text in COMMANDS.items())
    + "\n\n`dmtl COMMAND --help` explains a command."
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors that the user can fix are one line on stderr and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # the C locale has surrogateescape, which fails as well at what its encoding lacks
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"dmtl {arguments[0]}: {_told(error)}", file=sys.stderr)
    except DmtlError as error:
        print(f"dmtl {arguments[0]}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"dmtl {arguments[0]}: interrupted", file=sys.stderr)
        return 130
    return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, flush=True)
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"dmtl {__version__}", flush=True)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"dmtl: unknown command {command!r}{hint} (commands: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    try:
        return import_module(f"dmtl.cli.{command}").main(rest) or 0
    finally:  # also after the help, which exits the process
        sys.stdout.flush()


def _told(error: OSError) -> str:
    """Say what happened to which file, without the error number."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
