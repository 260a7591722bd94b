"""Make every launch that an operator's samples ask for, through Triton's own specialisation and compiler, and
stop before the device. A program, not a test: it must run without Triton's interpreter, which the tests
switch on.

    python -m tests.ops.dry_launch OP [90]

The tensors are on the CPU, and what is computed with them is nonsense. Prints a JSON object: kernel ->
launches. Fails if a launch does not compile, or asks for a grid or for shared memory that no device of this
architecture has.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from dataclasses import replace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from dmtl.ops.registry import REGISTRY

from .tools import run, serves

SHARED = {80: 163 * 1024, 90: 227 * 1024}
DTYPES = (torch.bfloat16, torch.float32)
launches: Counter[str] = Counter()


class Launcher:
    """What Triton calls instead of the device."""

    def __init__(self, source, metadata):
        self.name = source.fn.__name__

    def __call__(self, x: int, y: int, z: int, *arguments) -> None:
        assert 0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16, (self.name, x, y, z)
        launches[self.name] += 1


class Utilities:
    """The driver's, of a device of this architecture."""

    def __init__(self, arch: int):
        self.shared = SHARED[arch]

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.shared, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32
        }  # fmt: skip

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        assert shared <= self.shared, (name, shared)
        return 0, 1, 64, 0, 1024  # module, function, registers, spills, threads


class Driver:
    launcher_cls = Launcher

    def __init__(self, arch: int):
        self.arch, self.utils = arch, Utilities(arch)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class FirstAndLast:
    """In the place of `Fastest`: calls the last way, and chooses the first one."""

    def choose(self, kind, ways: dict, device) -> str:
        list(ways.values())[-1]()
        return next(iter(ways))


def main(op: str, arch: str = "90") -> None:
    driver.set_active(Driver(int(arch)))
    module = importlib.import_module(f"dmtl.kernels.triton.{op}")
    module.SUPPORT = replace(module.SUPPORT, devices=("cpu",), available=list)
    if hasattr(module, "_fastest"):
        module._fastest = FirstAndLast()
    spec = REGISTRY[op]
    for dtype in DTYPES:
        for size in ("tiny", "odd"):
            for sample in spec.samples(size, dtype, "cpu"):
                if not serves(spec, "triton", dtype, sample):
                    run(spec, sample, dtype, "triton")
    print(json.dumps(launches))


if __name__ == "__main__":
    main(*sys.argv[1:])
