"""Compiles Triton kernels to cubins without a GPU and reports what they use. A program, not a test: it must run
without Triton's interpreter, which the tests switch on.

    python -m tests.ops.cubins [--quick] [--ones] [--modules conv3x3,...] [--archs 80,90] [--markdown FILE]

--ones: with 1 for every integer argument, which Triton compiles as a constant (a Python int has no `.to`). Prints one JSON object for each compilation. Every module of kernels/triton may have `compilations()`: a list of
(kernel, signature, constants, options), one for every form in which the kernel may be launched. Types as Triton
spells them ("*bf16", "fp32", "i32"; a tuple of them for a tuple); "i32:16" is an integer known to be a multiple of 16.
Pointers are taken to be aligned to 16 bytes, as torch's are.
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
    kernel, signature, constants, options = compilation
    integers = [name for name, kind in signature.items() if isinstance(kind, str) and kind[0] == "i"]
    ones = {name: 1 for name in integers if name not in kernel.do_not_specialize}
    return kernel, signature, ones | constants, options


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
    """Registers a thread and bytes of stack (spills and local arrays) as the compiled binary declares them."""
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

    kernel, signature, constants, options = compilation
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
        **_usage(compiled.asm["cubin"]),
    }


def markdown(rows: list[dict]) -> str:
    """One line for each kernel, dtype and launch configuration: the most that any of its forms uses."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        blocks = ", ".join(
            f"{k} {v}" for k, v in row["constants"].items() if k.startswith("BLOCK") or k == "SIZE"
        )
        config = "; ".join([blocks, *(f"{k} {v}" for k, v in row["options"].items())]).strip("; ")
        groups.setdefault((row["module"], row["kernel"], row["dtype"], config, row["arch"]), []).append(row)
    lines = [
        "| file | kernel | dtype | configuration | sm | forms | registers | shared, bytes | spills | wgmma |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (module, kernel, dtype, config, arch), forms in groups.items():
        most = {name: max(row[name] for row in forms) for name in ("registers", "shared", "stack")}
        wgmma = "yes" if min(row["wgmma"] for row in forms) else "-"
        lines.append(
            f"| {module} | `{kernel}` | {dtype} | {config} | {arch} | {len(forms)} | {most['registers']} "
            f"| {most['shared']} | {most['stack'] or 'none'} | {wgmma} |"
        )
    return "\n".join(lines) + "\n"


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
            rows.append(compile_one(name, compilation, arch))
            print(json.dumps(rows[-1], default=str), flush=True)
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
