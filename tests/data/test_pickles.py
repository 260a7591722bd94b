"""The reader of pickles: plain data come out equal, nothing runs, nothing grows without end."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmtl.data.benchmarks import pickles
from dmtl.data.benchmarks.pickles import Array, Tensor, UnreadablePickle, load

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner, inner, inner)
    | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def read(data: bytes):
    return load(io.BytesIO(data))[0]


@given(PLAIN, st.integers(3, 5))
def test_plain_values_come_out_equal(value, protocol):
    found = read(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)


def test_bytes_of_protocol_2_and_dictionaries_in_order():
    assert read(pickle.dumps([b"\0\xff", b"a"], 2)) == [b"\0\xff", b"a"]
    assert read(pickle.dumps(collections.OrderedDict(b=1, a=2), 2)) == {"b": 1, "a": 2}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_numpy_values(protocol, module):
    values = [
        np.str_("2008_000002"),
        np.str_("ä€😀"),
        np.int64(-5),
        np.float32(0.5),
        np.bool_(True),
        np.uint8(200),
    ]
    for value in values:
        data = pickle.dumps(value, protocol)
        if protocol < 4:  # names are lines there, without a length
            data = data.replace(b"numpy._core", module)
        assert (read(data), type(read(data))) == (value.item(), type(value.item()))
    big_endian = pickle.dumps(np.array(["abc"], ">U5")[0], protocol)
    assert read(big_endian) == "abc"
    array = read(pickle.dumps(np.array({"a": ["b"]}, dtype=object), protocol))
    assert array == Array((), [{"a": ["b"]}])


def test_tensors_are_views_of_their_storage():
    """torch's own pickle of a transposed part of a tensor, its numbers given apart as in a file."""
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    part = whole[1:, :3].T
    arguments = (1 * 4, (3, 2), (1, 4), False, collections.OrderedDict())
    assert part.stride() == (1, 4) and part.storage_offset() == 4

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "k", "cpu", 12) if value is whole else None

        def reducer_override(self, value):
            return (torch._utils._rebuild_tensor_v2, (whole, *arguments)) if value is part else NotImplemented

    file = io.BytesIO()
    Pickler(file, 2).dump({"x": part})
    found, storages = load(io.BytesIO(file.getvalue()))
    assert isinstance(found["x"], Tensor) and list(storages) == ["k"] and storages["k"].count == 12
    assert np.array_equal(found["x"].array(whole.numpy().tobytes()), part.numpy())
    with pytest.raises(UnreadablePickle, match="44 bytes, not the 12 numbers"):
        found["x"].array(whole.numpy().tobytes()[:-4])


def tensor_pickle(offset: int, shape: tuple, strides: tuple) -> bytes:
    numbers = b"".join(struct.pack("<Bi", ord("J"), n) for n in (offset, *shape, *strides))
    first, rest = numbers[:5], numbers[5:]
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kN"
        b"K\x04tQ" + first + b"(" + rest[: 5 * len(shape)] + b"t(" + rest[5 * len(shape) :] + b"t\x89NtR."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (2, 3), (3, 1)),
        (1, (2, 2), (2, 1)),
        (0, (2, 2), (3, 1)),
        (0, (1000000, 1000), (0, 0)),
        (4, (1, 1), (1, 1)),
    ],
)
def test_a_tensor_stays_in_its_storage(offset, shape, strides):
    with pytest.raises(UnreadablePickle, match="beyond its numbers"):
        read(tensor_pickle(offset, shape, strides)).array(bytes(16))


def test_a_tensor_of_hand():
    assert read(tensor_pickle(2, (1, 2), (2, 1))).array(np.arange(4, dtype="<f4").tobytes()).tolist() == [
        [2, 3]
    ]


class Runs:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_code_runs(tmp_path, protocol):
    trace = tmp_path / "trace"
    for evil in (
        Runs(os.system, f"touch {trace}"),
        Runs(eval, f"open({str(trace)!r}, 'w')"),
        Runs(trace.write_text, "x"),
        Runs(torch.load, str(trace)),
        Runs(np.load, str(trace)),
        Runs(exec, "pass"),
        Path("x"),
        os.system,
    ):
        data = pickle.dumps({"a": [evil]}, protocol)
        with pytest.raises(UnreadablePickle, match="refers to '.*', which is no data|operation b"):
            read(data)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {trace}"), protocol))
    assert trace.exists(), "the same pickle does run elsewhere"


def test_every_operation_is_known_or_refused():
    """On a stack with something for each to take: a value, or an error of ours."""
    for code in range(256):
        for below in (b"", b"N", b"]N", b"}X\x01\0\0\0aN", b"((N", b"cnumpy\ndtype\n)"):
            try:
                read(b"\x80\x02" + below + bytes([code]) + b"\x01\0\0\0\0\0\0\0a\n" + b".")
            except UnreadablePickle as error:
                assert "\n" not in str(error)
    known = {op.code.encode("latin1") for op in pickletools.opcodes}
    for unknown in (bytes([c]) for c in range(256) if bytes([c]) not in known):
        with pytest.raises(UnreadablePickle, match="damaged pickle"):
            read(unknown + b".")


TEXT_1M = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
BOMBS = {
    "doubling lists": b"]q\0" + b"(h\0h\0lq\0" * 50 + b".",
    "doubling tuples": b")q\0" + b"h\0h\0\x86q\0" * 200 + b".",
    "doubling tuples as key": b"})q\0" + b"h\0h\0\x86q\0" * 200 + b"Ns.",
    "list in itself": b"]q\0h\0ah\0ah\0.",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b")" + b"\x85" * 100_000 + b".",
    "deep marks": b"(" * 100_000 + b"t" * 100_000 + b".",
    "one text encoded again and again": TEXT_1M + b"c_codecs\nencode\nq\1X\6\0\0\0latin1q\2"
    + b"h\1h\0h\2\x86R" * 100_000 + b".",
    "a long text": b"X\xff\xff\xff\xff.",
    "long bytes": b"B\xff\xff\xff\xff.",
    "a long integer": b"\x8a\xff" + b"\xff" * 255 + b".",
    "an endless name": b"c" + b"a" * 1_000_000,
    "a huge type": b"cnumpy\ndtype\nX\x06\0\0\0U99999\x89\x88\x87R.",
}  # fmt: skip


HARMLESS = ("list in itself", "doubling tuples", "deep lists", "deep tuples", "deep marks", "a huge type")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name):
    data = b"\x80\x02" + BOMBS[name]
    tracemalloc.start()
    try:
        if name in HARMLESS:
            read(data)
        else:
            with pytest.raises(UnreadablePickle) as error:
                read(data)
            assert len(str(error.value)) < 200 and "\n" not in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_the_number_of_operations_is_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
    assert read(b"N" * 999 + b".") is None
    with pytest.raises(UnreadablePickle, match="more than 1000 operations"):
        read(b"N" * 1000 + b".")


@given(st.binary(max_size=40), st.data())
def test_noise_ends_in_one_kind_of_error(noise, data):
    whole = pickle.dumps({"a": [np.str_("x"), 1, b"y"], "b": np.array({"c": 1}, object)}, 4)
    at = data.draw(st.integers(0, len(whole)))
    for content in (noise, whole[:at], whole[:at] + noise + whole[at:], whole[:at] + noise):
        with contextlib.suppress(UnreadablePickle):
            read(content)


def test_several_pickles_one_after_the_other():
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 4) + b"rest")
    assert load(file)[0] == 1 and load(file)[0] == "two" and file.read() == b"rest"
