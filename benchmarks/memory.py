"""Peak memory of one contender in a separate process, including its parameters and libraries."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path

import torch

from dmtl.errors import one_line
from dmtl.runtime.process import ProcessError, call_in_process

from . import runtimes
from .cases import Case, case_from
from .contenders import engine, make, missing

LIMIT_S = 900


def peak(case: Case, name: str, precision: str, threads: int | None = None, **options) -> dict:
    """Return {"peak_mib", ...} of predictions after a warm-up, or {"error"}.

    CPU: the process's largest resident set (Linux; None elsewhere). GPU: bytes allocated by torch, with the
    pools of captured graphs as "reserved_mib".
    """
    asked = {"case": asdict(case), "name": name, "precision": precision, "options": options}
    return peak_of("benchmarks.memory:measured", asked, threads)


def peak_of(function: str, arguments: dict, threads: int | None = None) -> dict:
    """Return what `function` ("module:name") measures in a separate process, or {"error"}."""
    try:
        return call_in_process(function, arguments, limit_s=LIMIT_S, threads=threads)
    except ProcessError as error:
        return {"error": str(error)}


def row(case: Case, name: str, precision: str, **options) -> dict:
    """Return `peak` with a description of the contender."""
    facts = {"part": "memory", "contender": name, "precision": precision} | case.described()
    if reason := missing(name, precision):
        return facts | {"skipped": reason}
    if name in runtimes.NAMES:
        try:  # written here, so that the process whose memory counts only loads it
            options["file"] = str(runtimes.file_of(name, case))
        except RuntimeError as failure:
            return facts | {"error": one_line(failure)}
    return facts | peak(case, name, precision, **options)


def measured(case: dict, name: str, precision: str, options: dict) -> dict:
    """Build the contender, warm it up, predict twice more and return the peak of these."""
    case = case_from(case)
    device = torch.device(case.device)
    image = case.image()
    model = None if "file" in options else case.build().to(device)
    if name == "dmtl":
        contender = engine(model, image, case, precision, inplace=True)
    else:
        contender = make(name, model, image, case, precision, **options)
    del model
    with torch.inference_mode(), contender.settings():
        for watched in (False, True):
            if watched:
                forget_peak(device)
            for _ in range(2):
                contender.run(image)
    return peak_so_far(device)


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    # Not Linux, or not permitted: use the peak of the whole process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_so_far(device: torch.device) -> dict:
    """Return the peak of this process as `peak` does."""
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
