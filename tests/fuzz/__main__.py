"""`python -m tests.fuzz [READER ...]`: outcomes for each reader, and every fault; status 1 where one is.

File number n of a reader is always the same, so `--first n --count 1` repeats one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.harness import fuzz
from tests.fuzz.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", help=f"default: {', '.join(READERS)}")
    parser.add_argument("--count", type=int, default=20_000, help="files for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    options = parser.parse_args()
    faulty = False
    for name in options.readers or READERS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = fuzz([name], options.count, Path(folder), options.first)[name]
        parts = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(result.counts.items()))
        print(f"{name:20} {parts}  ({time.monotonic() - started:.0f} s)", flush=True)
        print(*result.faults[:20], sep="\n", end="\n" * bool(result.faults), flush=True)
        faulty |= bool(result.faults)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
