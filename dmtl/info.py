"""`dmtl info`: versions, what was built, and which backend each op takes here, with the reasons against the
others."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

import dmtl
from dmtl import native
from dmtl.ops import _registry

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PACKAGES = ("torch", "numpy", "safetensors", "pillow", "triton", "timm", "tensorboard")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, dict]:
    core, cuda = native.core(), native.core_cuda()
    cpu = {"built": core is not None, "why_not": native.why_no_core()}
    if core is not None:
        cpu |= {"compiler": core.compiler, "openmp": core.openmp, "isa": core.isa(), "isas": core.isas()}
    gpu = {"built": cuda is not None, "why_not": native.why_no_core_cuda()}
    if cuda is not None:
        gpu |= {"archs": cuda.archs, "toolkit": cuda.toolkit}
    return {"_core": cpu, "_core_cuda": gpu}


def _ops(devices: list[str]) -> list[dict]:
    """One row for each op, device and dtype: the backend that serves it and the reasons against the others.

    A tensor of no elements stands for the call: support depends on device and dtype only.
    """
    rows = []
    for spec in _registry.REGISTRY.values():
        for device in devices:
            for dtype in DTYPES:
                probe = [torch.empty(0, dtype=dtype, device=device)]
                wish = _registry.requested(spec.name)
                names = _registry.candidates(spec, device)
                against = {name: _registry.reasons_against(spec, name, probe) for name in _registry.BACKENDS}
                taken = next((name for name in names if not against[name]), None)
                rows.append(
                    {
                        "op": spec.name,
                        "device": device,
                        "dtype": str(dtype).removeprefix("torch."),
                        "backend": taken,
                        "asked_by": wish[1] if wish else None,
                        "why_not": {name: reasons for name, reasons in against.items() if reasons},
                    }
                )
    return rows


def info() -> dict:
    """Everything that `print_info` shows, JSON-able: versions, machine, native modules, devices, ops.

    Asks torch for devices (so it initialises CUDA where there is one); computes nothing.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        "dmtl": dmtl.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "native": _native(),
        "ops": _ops(devices),
    }


def _built_line(entry: dict) -> str:
    if not entry["built"]:
        return "[yellow]missing[/] " + "; ".join(entry["why_not"])
    details = {key: value for key, value in entry.items() if key not in ("built", "why_not")}
    text = ", ".join(
        f"{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in details.items()
    )
    unusable = f" [yellow](not usable: {'; '.join(entry['why_not'])})[/]" if entry["why_not"] else ""
    return f"[green]built[/] {text}{unusable}"


def print_info() -> None:
    """Print `info()` as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    facts = info()
    console = Console()
    head = Table(
        title=f"dmtl {facts['dmtl']}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    absent = ", ".join(name for name, version in facts["packages"].items() if not version)
    head.add_row("python", f"{facts['python']} on {facts['machine']}, {facts['threads']} threads")
    head.add_row("packages", escape(packages) + (f" [dim](not installed: {absent})[/]" if absent else ""))
    head.add_row("GPUs", escape(", ".join(facts["gpus"])) or "none")
    head.add_row("C++ kernels", _built_line(facts["native"]["_core"]))
    head.add_row("CUDA kernels", _built_line(facts["native"]["_core_cuda"]))
    console.print(head)

    # Rows that differ in nothing but the dtype are one row.
    merged: dict[tuple, list[str]] = {}
    for row in facts["ops"]:
        # The first reason is enough for a table; `info()` has all.
        reasons = "\n".join(f"{name}: {why[0]}" for name, why in row["why_not"].items())
        backend = row["backend"] or "none"
        if row["asked_by"]:
            backend += f" (asked for by {row['asked_by']})"
        merged.setdefault((row["op"], row["device"], backend, reasons), []).append(row["dtype"])
    table = Table(title="\nWhich backend serves each op here", title_justify="left")
    for column in ("op", "device", "dtype", "backend", "why not the others"):
        table.add_column(column)
    for (op, device, backend, reasons), dtypes in merged.items():
        style = (
            "red" if backend.startswith("none") else "yellow" if backend.startswith("reference") else "green"
        )
        table.add_row(op, device, "\n".join(dtypes), f"[{style}]{backend}[/]", escape(reasons) or "-")
    console.print(table)
