"""Every op (or those named), forward and backward, on the named backend at its tiny and odd sizes.

compute-sanitizer --tool memcheck python -m tests.ops.small_calls cuda [OP ...]
"""

from __future__ import annotations

import sys

import torch

from dmtl.ops.registry import REGISTRY

from .tools import DEVICE, run, serves


def main(backend: str, *ops: str) -> int:
    """Return the number of calls made, after all of them have run."""
    made = 0
    for spec in (REGISTRY[op] for op in ops or REGISTRY):
        for size in ("tiny", "odd"):
            for sample in spec.samples(size, torch.float32, DEVICE):
                if not serves(spec, backend, torch.float32, sample):
                    run(spec, sample, torch.float32, backend)
                    made += 1
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"{made} calls on {backend}")
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
