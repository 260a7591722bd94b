"""The facts that a stored row needs for later comparison."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import torch

import dmtl


def facts(device: torch.device) -> dict:
    """Return versions, machine and date; "commit" is None outside a checkout."""
    return {
        "dmtl": dmtl.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "onnxruntime": _version("onnxruntime"),
        "openvino": _version("openvino"),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def keep(rows: Iterable[dict], path: Path, device: torch.device) -> None:
    """Append rows with their facts to a file of JSON lines."""
    known = facts(device)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | known) + "\n" for row in rows)


def processor() -> str:
    """Return the processor's name as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip()[:12] or None
