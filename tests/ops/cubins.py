"""Compiles Triton kernels to cubins without a GPU and reports what they use. A program, not a test: it must
run without Triton's interpreter, which the tests switch on.

    python -m tests.ops.cubins [--quick] [--ones] [--modules conv3x3,...] [--archs 80,90] [--markdown FILE]

--ones: with 1 for every integer argument, which Triton compiles as a constant (a Python int has no `.to`).
Prints one JSON object for each compilation. Every module of kernels/triton may have `compilations()`: a list
of (kernel, signature, constants, options, arch), one for every form in which the kernel may be launched, with
the oldest architecture that has it. Types as Triton spells them ("*bf16", "fp32", "i32"; a tuple of them for
a tuple); "i32:16" is an integer known to be a multiple of 16. Pointers are taken to be aligned to 16 bytes,
as torch's are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "kernels" / "triton").glob("*.py") if path.stem != "__init__")


def compilations(modules: list[str]) -> Iterator[tuple[str, tuple]]:
    """(module, compilation) for all forms of all kernels."""
    for name in modules:
        module = importlib.import_module(f"dmtl.kernels.triton.{name}")
        for compilation in getattr(module, "compilations", list)():
            yield name, compilation


def quick(found: list[tuple[str, tuple]]) -> list[tuple[str, tuple]]:
    """One form of each kernel, in bfloat16 where there is one."""
    chosen = {}
    for name, compilation in found:
        kernel, signature = compilation[0].__name__, compilation[1]
        if kernel not in chosen or ("*bf16" in signature.values() and not chosen[kernel][0]):
            chosen[kernel] = ("*bf16" in signature.values(), (name, compilation))
    return [pair for _, pair in chosen.values()]


def with_ones(compilation: tuple) -> tuple:
    """The form that Triton compiles when every integer argument that it specialises on is 1."""
    kernel, signature, constants, *rest = compilation
    integers = [name for name, kind in signature.items() if isinstance(kind, str) and kind[0] == "i"]
    ones = {name: 1 for name in integers if name not in kernel.do_not_specialize}
    return kernel, signature, ones | constants, *rest


def _typed(kernel, signature: dict, constants: dict) -> tuple[dict, dict]:
    """Signature and attributes (which arguments are multiples of 16) as Triton's compiler wants them."""
    types, attributes = {}, {}

    def plain(kind: str, path: tuple[int, ...]) -> str:
        base, _, multiple = kind.partition(":")
        if base.startswith("*") or multiple == "16":
            attributes[path] = [["tt.divisibility", 16]]
        return base

    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif isinstance(signature[name], tuple):
            types[name] = tuple(plain(kind, (i, j)) for j, kind in enumerate(signature[name]))
        else:
            types[name] = plain(signature[name], (i,))
    return types, attributes


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack (spills and local
    arrays) as the compiled binary declares them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool if tool.exists() else "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}


def compile_one(module: str, compilation: tuple, arch: int) -> dict:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants, options, _ = compilation
    types, attributes = _typed(kernel, signature, constants)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    halves = re.findall(r"tt\.dot [^\n]*?: tensor<\d+x\d+x(bf16|f16)", compiled.asm["ttir"])
    flat = [
        kind for value in signature.values() for kind in (value if isinstance(value, tuple) else (value,))
    ]
    return {
        "module": module,
        "kernel": kernel.__name__,
        "arch": arch,
        "dtype": next((kind[1:] for kind in flat if kind in ("*bf16", "*fp16")), "fp32"),
        "constants": {name: value for name, value in constants.items() if value is not None},
        "options": options,
        "shared": compiled.metadata.shared,
        "half_dots": len(halves),
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
        "descriptors": str(signature).count("tensordesc"),
        "tma": compiled.asm["ptx"].count("cp.async.bulk.tensor"),
        **_usage(compiled.asm["cubin"]),
    }


_TILE = re.compile(
    r"BLOCK(_\w+)?|SIZE|TOKENS|CELLS|CHANNELS"
)  # constants that make up a launch configuration


HEAD = """# What the Triton kernels use

Compiled without a GPU by `python -m tests.ops.cubins --markdown kernels/triton/resources.md`, in every
configuration in which a kernel may be launched (kernels that take tasks or maps side by side: for five). A
row shows the largest use of all forms in it. tests/ops/test_triton_cubins.py refuses stack frames (that is,
spills), more shared memory than the device has, and products of 16-bit numbers without wgmma on sm_90.

"""


def markdown(rows: list[dict]) -> str:
    """One line for each kernel, width of data and launch configuration: the most that any of its forms uses,
    by architecture."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        tile = ", ".join(
            f"{name} {value}" for name, value in row["constants"].items() if _TILE.fullmatch(name)
        )
        options = ", ".join(f"{value} {name.removeprefix('num_')}" for name, value in row["options"].items())
        dtype = "fp32" if row["dtype"] == "fp32" else "16-bit"
        key = (f"{row['module']}.{row['kernel']}", dtype, "; ".join(filter(None, (tile, options))))
        groups.setdefault(key, []).append(row)
    archs = sorted({row["arch"] for row in rows})
    names = " / ".join(f"sm_{arch}" for arch in archs)
    lines = [
        f"| kernel | data | configuration | forms | registers, {names} | shared bytes | stack bytes "
        "| wgmma |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kernel, dtype, config), forms in sorted(groups.items()):
        most = [
            " / ".join(
                str(max((row[use] for row in forms if row["arch"] == arch), default="-")) for arch in archs
            )
            for use in ("registers", "shared", "stack")
        ]
        dots = [row for row in forms if row["arch"] >= 90 and row["half_dots"]]
        wgmma = "yes" if dots and all(row["wgmma"] for row in dots) else ""
        count = sum(row["arch"] == archs[-1] for row in forms)
        lines.append(" | ".join([f"| `{kernel}`", dtype, config, str(count), *most, wgmma]) + " |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ones", action="store_true")
    parser.add_argument("--modules", default=",".join(MODULES))
    parser.add_argument("--archs", default="80,90")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        sys.exit("cubins: TRITON_INTERPRET must not be set, the interpreter compiles nothing")
    found = list(compilations(args.modules.split(",")))
    rows = []
    for name, compilation in quick(found) if args.quick else found:
        if args.ones:
            compilation = with_ones(compilation)
        for arch in map(int, args.archs.split(",")):
            if arch >= compilation[-1]:
                rows.append(compile_one(name, compilation, arch))
                print(json.dumps(rows[-1], default=str), flush=True)
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
