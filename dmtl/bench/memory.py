"""Peak memory of one contender in a process of its own, where its parameters and its library count too.

`peak` starts the process; `python -m dmtl.bench.memory` is that process and reads what to do from stdin.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import dmtl
from dmtl.bench.contenders import Case, case_from, engine, make

LIMIT_S = 900


def peak(case: Case, name: str, precision: str, threads: int | None = None, **options) -> dict:
    """{"peak_mib", ...} of predictions after a warm-up, or {"error"}.

    CPU: the process's largest resident set (Linux; None elsewhere). GPU: bytes allocated by torch, with the
    pools of captured graphs as "reserved_mib".
    """
    return in_own_process(
        {"case": asdict(case), "name": name, "precision": precision, "options": options}, threads
    )


def in_own_process(work: dict, threads: int | None = None) -> dict:
    """`peak` of what `work` describes: arguments of `measured`, or with "training" of `training.watched`."""
    work = work | {"threads": torch.get_num_threads() if threads is None else threads}
    try:
        done = run_module("dmtl.bench.memory", work, LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {LIMIT_S} s"}
    if done.returncode:
        return {"error": last_words(done)}
    return json.loads(done.stdout.splitlines()[-1])


def run_module(
    module: str, asked: dict, limit_s: float, without: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`python -m module` of this package with `asked` as JSON on its stdin, what it prints captured. without:
    environment variables that it is not to see. Raises subprocess.TimeoutExpired after `limit_s` seconds."""
    paths = [str(Path(dmtl.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    environment = {name: value for name, value in os.environ.items() if name not in without}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=limit_s,
    )


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a failed process wrote to stderr."""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def row(case: Case, name: str, precision: str, **options) -> dict:
    """`peak` with what it is the peak of."""
    facts = {"part": "memory", "contender": name, "precision": precision}
    facts |= {"size": list(case.size), "batch": case.batch}
    return facts | peak(case, name, precision, **options)


def measured(case: Case, name: str, precision: str, options: dict) -> dict:
    """Makes the contender, warms it up and predicts twice more under watch."""
    device = torch.device(case.device)
    image = case.image()
    model = case.build()
    if name == "dmtl":
        contender = engine(model, image, case, precision, inplace=True)
    else:
        contender = make(name, model.to(device), image, case, precision, **options)
    del model
    with torch.inference_mode(), contender.settings():
        for watched in (False, True):
            if watched:
                _forget_peak(device)
            for _ in range(2):
                contender.run(image)
    return _peak(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    # Not Linux, or not allowed: the peak of the whole process then.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> dict:
    if device.type == "cuda":
        torch.cuda.synchronize()
        found = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        return dict(zip(("peak_mib", "reserved_mib"), (x / 2**20 for x in found), strict=True))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"peak_mib": None}
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {"peak_mib": kib / 2**10}


def main() -> int:
    work = json.load(sys.stdin)
    torch.set_num_threads(work["threads"])
    if work.get("training"):
        from dmtl.bench import training

        training.watched(work)
        print(json.dumps(_peak(torch.device(work["case"]["device"]))))
        return 0
    case = case_from(work["case"])
    print(json.dumps(measured(case, work["name"], work["precision"], work["options"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
