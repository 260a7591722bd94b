"""Every op, forward and backward, on the named backend at its tiny and odd sizes: what a sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.ops.small_calls cuda
"""

from __future__ import annotations

import sys

import torch

from dmtl.ops.registry import REGISTRY

from .tools import DEVICE, run, serves


def main(backend: str) -> int:
    """Number of calls made."""
    made = 0
    for spec in REGISTRY.values():
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
    sys.exit(0 if main(sys.argv[1]) else 1)
