"""Call a function in a separate process, to isolate its memory and its crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from dmtl.errors import DmtlError


class ProcessError(RuntimeError):
    """The call failed or took too long. `signal` is the number of the signal that killed it, or None."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


def call_in_process(
    function: str,
    arguments: Mapping[str, Any],
    *,
    limit_s: float,
    threads: int | None = None,
    without: Sequence[str] = (),
) -> Any:
    """Return `function(**arguments)`, computed in a new Python process.

    Args:
        function: "module:name" of a function that can be imported.
        arguments: its arguments, in values that JSON can hold; the same holds for its result.
        limit_s: seconds after which the process is stopped.
        threads: number of torch's threads in the process; None: as many as in this one.
        without: environment variables to remove.

    Raises:
        ProcessError: the call failed or took too long; the message is the last line that the process wrote to
            stderr.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    asked = {"function": function, "arguments": arguments, "threads": threads or torch.get_num_threads()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dmtl.runtime.process"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            env=environment,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"stopped after {limit_s:g} s") from None
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ProcessError(last_line, signal=-done.returncode if done.returncode < 0 else None)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Read a call from stdin and print its result, both as JSON; print errors of dmtl as one line on
    stderr."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    module, _, name = asked["function"].partition(":")
    try:
        print(json.dumps(getattr(import_module(module), name)(**asked["arguments"])))
    except DmtlError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
