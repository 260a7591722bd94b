"""Damaged files: up to a hundred for each reader here, $DMTL_FUZZ or `make fuzz` for more."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from random import Random

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.mutate import OPERATIONS, mutate, png, zipped
from tests.fuzz.readers import READERS, label_pngs, root_of, splits

TOGETHER = [name for name, reader in READERS.items() if reader.names is root_of]
ALONE = [name for name in READERS if name not in TOGETHER]


@pytest.mark.parametrize(("names", "count"), [(ALONE, 100), (TOGETHER, 60)], ids=["alone", "together"])
def test_every_damaged_file_is_read_or_refused(tmp_path, names, count):
    count = int(os.environ.get("DMTL_FUZZ", count))
    results = fuzz(names, count, tmp_path)
    faults = {name: result.faults[:5] for name, result in results.items() if result.faults}
    assert not faults
    for name, result in results.items():
        assert sum(result.counts.values()) == count
        assert result.counts["refused"] > 0, name
        assert result.counts["read"] > 0 or name.startswith("evil"), name


FAULTS = {
    "reads": "read",
    "refuses": "refused",
    "wrong error": "wrong error",
    "wrong message": "wrong message",
    "two lines": "wrong message",
    "crash": "crash",
    "memory": "memory",
    "told memory": "memory",
    "code": "code",
    "unpickles": "code",
    "writes": "code",
}


def test_the_harness_sees_every_fault(tmp_path):
    results = fuzz(FAULTS, 1, tmp_path, module="tests.fuzz.broken")
    assert {name: dict(result.counts) for name, result in results.items()} == {
        name: {outcome: 1} for name, outcome in FAULTS.items()
    }
    assert "KeyError" in results["wrong error"].faults[0] and "SIGSEGV" in results["crash"].faults[0]
    assert "pickle.find_class" in results["unpickles"].faults[0]


@pytest.mark.slow
def test_a_hang_ends(tmp_path):
    result = fuzz(["hang"], 1, tmp_path, module="tests.fuzz.broken")["hang"]
    assert dict(result.counts) == {"hang": 1} and "SIGPROF" in result.faults[0]


def test_damage_is_a_function_of_the_generator():
    content, other = label_pngs()["RGB.png"], label_pngs()["P.png"]
    for damage in (mutate, png):
        made = [[damage(Random(f"x {n}"), content, other) for n in range(200)] for _ in range(2)]
        assert made[0] == made[1] and len(set(made[0])) > 190


def test_every_operation_survives_any_file():
    for operation in OPERATIONS:
        changed = 0
        for number, content in enumerate([b"", b"a", b"12", b"\0" * 1000, bytes(range(256))] * 20):
            data = bytearray(content)
            operation(Random(number), data, content[::-1])
            changed += bytes(data) != content
            assert len(data) < 21 * (len(content) + 401)
        assert changed > 10, operation.__name__


def test_checksums_are_made_right():
    """Otherwise most damage to these formats would stop at the first check."""
    whole, weights = label_pngs()["RGB.png"], splits()["weights-True.pth"]
    damaged = [png(Random(n), whole, whole) for n in range(100)]
    assert sum(content != whole and _sums_are_right(content) for content in damaged) > 50
    damaged = [zipped(Random(n), weights, weights) for n in range(100)]
    assert sum(content != weights and _opens(content) for content in damaged) > 40


def _sums_are_right(content: bytes) -> bool:
    """Of all whole chunks of a PNG."""
    place, right = 8, []
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        right.append(zlib.crc32(content[place + 4 : end]).to_bytes(4, "big") == content[end : end + 4])
        place = end + 4
    return bool(right) and all(right)


def _opens(content: bytes) -> bool:
    try:
        return zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    except Exception:
        return False
