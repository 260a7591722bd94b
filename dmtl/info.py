"""Report versions, what was built, and which backend each op uses on this machine, with the reasons against
the others."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

import torch

import dmtl
from dmtl.ops import registry
from dmtl.runtime import native

if TYPE_CHECKING:
    from rich.table import Table

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
    """Return one row per op, device and dtype: the backend that serves it, and why the others do not.

    It asks with an empty tensor: support depends only on device and dtype.
    """
    rows = []
    for spec in registry.REGISTRY.values():
        for device in devices:
            for dtype in DTYPES:
                probe = [torch.empty(0, dtype=dtype, device=device)]
                wish = registry.requested(spec.name)
                names = registry.candidates(spec, device)
                against = {name: registry.reasons_against(spec, name, probe) for name in registry.BACKENDS}
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
    """Return everything that `print_info` shows, JSON-able: versions, machine, native modules, devices, ops.

    Asks torch for devices (so it initialises CUDA, if there is a GPU); computes nothing.
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

    for device in dict.fromkeys(row["device"] for row in facts["ops"]):
        rows = [row for row in facts["ops"] if row["device"] == device]
        console.print(_backend_table(device, rows))
        for backend, reason in _absences(rows).items():
            console.print(f"  [dim]{backend}: {escape(reason)}[/]", soft_wrap=True)


def _backend_table(device: str, rows: list[dict]) -> Table:
    """Return a table of op x backend with dtypes in the cells: marked by * if the backend is used, plain if
    it could serve the call, "-" if it cannot."""
    from rich.table import Table

    title = f"\nBackends of each op for {device} tensors (*: used here)"
    table = Table(title=title, title_justify="left")
    for column in ("op", *registry.BACKENDS):
        table.add_column(column)
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        cells = [[_cell(row, backend) for row in mine] for backend in registry.BACKENDS]
        asked = next((f" [yellow](by {row['asked_by']})[/]" for row in mine if row["asked_by"]), "")
        table.add_row(op + asked, *(" ".join(filter(None, cell)) or "[dim]-[/]" for cell in cells))
    return table


_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _cell(row: dict, backend: str) -> str:
    if backend in row["why_not"]:
        return ""
    short = _SHORT[row["dtype"]]
    return f"[green]{short}*[/]" if row["backend"] == backend else short


def _absences(rows: list[dict]) -> dict[str, str]:
    """Return the backends that serve no op here, each with the reason that most ops give."""
    found = {}
    for backend in registry.BACKENDS:
        reasons = [row["why_not"][backend][-1] for row in rows if backend in row["why_not"]]
        if len(reasons) == len(rows):
            found[backend] = max(set(reasons), key=reasons.count)
    return found
