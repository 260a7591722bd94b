"""Kernels with one fault each, which the emulator or a comparison must notice.

python -m tests.cudacpu.mutants OP=MODULE ...    runs the calls of each OP on its mutant; prints what survives
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from .build import ROOT

PRODUCT = "csrc/include/dmtl/product_cuda.cuh"
NOISING = "csrc/include/dmtl/noising_cuda.cuh"
CONDITION, DECODE = "kernels/cuda/condition_tokens.cu", "kernels/cuda/decode_map.cu"
NOISY, UPSAMPLE = "kernels/cuda/noisy_tokens.cu", "kernels/cuda/upsample_add.cu"


@dataclass(frozen=True)
class Mutant:
    """`fault`: what is wrong with it. `op`: whose calls show it. `old` is in `file` once."""

    fault: str
    op: str
    file: str
    old: str
    new: str = ""

    def text(self) -> str:
        text = (ROOT / self.file).read_text()
        assert text.count(self.old) == 1, (
            f"{self.fault}: {self.old!r} is in {self.file} {text.count(self.old)} times"
        )
        return text.replace(self.old, self.new)


MUTANTS = (
    Mutant(
        "tiles are multiplied before all are filled", "decode_map", PRODUCT,
        "__syncthreads();\n        sums.add(shared.tiles);", "sums.add(shared.tiles);",
    ),
    Mutant(
        "tiles are filled again before all are multiplied", "condition_tokens", PRODUCT,
        "sums.add(shared.tiles);\n        __syncthreads();", "sums.add(shared.tiles);",
    ),
    Mutant(
        "sums are read before all are written", "decode_map", PRODUCT,
        "sums.put(shared.out);\n    __syncthreads();", "sums.put(shared.out);",
    ),
    Mutant("rows past the last are written", "condition_tokens", PRODUCT, "if (row0 + i < rows && ", "if ("),
    Mutant(
        "weights past the last are read", "decode_map", PRODUCT,
        "in_b = k < depth && column0 + line < n", "in_b = true",
    ),
    Mutant(
        "a step of the sum over a warp is missing", "condition_tokens", CONDITION,
        "int step = 16;", "int step = 8;",
    ),
    Mutant(
        "pixels past the last are written", "condition_tokens", CONDITION,
        "if (pixel >= p.samples * height * width) return;",
    ),
    Mutant(
        "an empty grid", "decode_map", DECODE,
        "const dim3 grid(static_cast<unsigned>((p.width + kThreads - 1) / kThreads)", "const dim3 grid(0u",
    ),
    Mutant(
        "the bias gradient is summed before all have theirs", "noisy_tokens", NOISY,
        "__syncthreads();\n    for (int i = threadIdx.x;", "for (int i = threadIdx.x;",
    ),
    Mutant(
        "parts are summed before all have theirs", "noisy_tokens", NOISY,
        "__syncthreads();\n    if (depth > 0", "if (depth > 0",
    ),
    Mutant(
        "channels past the last are written", "noisy_tokens", NOISY,
        "if (token >= p.rows * tokens_per_row || c >= C) return;",
        "if (token >= p.rows * tokens_per_row) return;",
    ),
    Mutant("the right edge is passed", "upsample_add", UPSAMPLE, " || first + dx >= p.width"),
    Mutant("the gradient's right edge is passed", "upsample_add", UPSAMPLE, " || x >= p.width"),
    Mutant(
        "rows at odd addresses are read as vectors", "q_sample", NOISING,
        "groups * vectors < (int64_t{1} << 31) &&\n                      all_aligned(sizeof(Vec<T>));",
        "groups * vectors < (int64_t{1} << 31);",
    ),
    Mutant(
        "a channel gets the noise of another", "q_sample", NOISING,
        "normals((first + k) * groups + group,", "normals((first + k) * groups + group + 1,",
    ),
    Mutant("a row's end is passed", "q_sample", NOISING, "if (4 * block + j >= p.count) break;"),
    Mutant(
        "the second launch starts with the first's rows", "posterior_step", NOISING,
        "if (has_y) p.y = static_cast<const T*>(p.y) + size * p.stride_y;",
    ),
)  # fmt: skip


def _calls(op: str) -> list[tuple]:
    """(spec, sample, dtype) of the op's calls."""
    import torch

    from dmtl.ops.registry import REGISTRY
    from tests.ops.tools import serves

    spec = REGISTRY[op]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in ("tiny", "odd"):
            samples = spec.samples(size, dtype, "cpu")
            found += [(spec, sample, dtype) for sample in samples if not serves(spec, "cuda", dtype, sample)]
    if op == "q_sample":  # channels last, at an even address and at an odd one
        tables = {name: torch.linspace(0.5, 1, 4) for name in ("sqrt_abar_S", "sqrt_one_minus_abar_S")}
        for start in (0, 1):
            x = torch.randn(512 + start)[start:].view(2, 4, 4, 16).permute(0, 3, 1, 2)
            sample = dict(x0=x, t_B=torch.tensor([1, 2]), key_B3=torch.arange(6).view(2, 3), **tables)
            found.append((spec, sample, torch.float32))
    if op == "posterior_step":  # more rows than one launch takes
        many = torch.randn(2, 70_000, 1)
        tables = {name: torch.linspace(0.5, 1, 4) for name in ("coef1_S", "coef2_S", "sigma_S")}
        sample = dict(x0_hat=many[0], x_t=many[1], t_B=torch.arange(70_000) % 4, **tables)
        found.append((spec, sample, torch.float32))
    return found


def _results(op: str) -> list:
    from tests.ops.tools import run

    return [list(run(spec, sample, dtype, "cuda").values()) for spec, sample, dtype in _calls(op)]


def _same(a: list, b: list) -> bool:
    import torch

    pairs = [pair for xs, ys in zip(a, b) for pair in zip(xs, ys)]
    return all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in pairs)


def _survives(module: str, op: str, expected: list) -> bool:
    """Run the calls in a child, since a fault may end the process."""
    child = os.fork()
    if not child:
        signal.alarm(120)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the sanitizer's report
        from .plugin import serve

        try:
            serve(module)
            same = _same(_results(op), expected)
        except Exception:  # a launch that is refused, for one
            same = False
        os._exit(0 if same else 1)
    return os.waitpid(child, 0)[1] == 0


def main(wanted: list[str]) -> int:
    from . import plugin  # noqa: F401  (serves the module without faults)

    expected: dict[str, list] = {}
    survivors = []
    for op, module in (word.split("=") for word in wanted):
        expected[op] = expected.get(op) or _results(op)
        if _survives(module, op, expected[op]):
            survivors.append(Path(module).parent.name)
    print(f"{len(wanted)} mutants, survivors: {survivors}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
