"""Pickled data, read without running any of it.

A pickle is a program for a small stack machine, and the usual reader lets it call any function. This one
builds plain values (None, bool, int, float, str, bytes, list, tuple, dict with text as keys), and does itself
what the few functions would do with which NumPy and torch store strings, numbers, arrays of objects and
tensors. Every other name is refused. Nothing recurses, and what functions make is bounded by the file's size,
however often the pickle refers to one thing.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPERATIONS = 4_000_000
_DAMAGE = (ArithmeticError, LookupError, TypeError, ValueError, struct.error)


class UnreadablePickle(ValueError):
    """It is damaged, or asks for more than data. The message says what, in one line."""


@dataclass
class DType:
    """A NumPy type: kind O, U, b, i, u or f; `size` is its bytes, or the letters of a string."""

    kind: str
    size: int
    order: str = "<"


@dataclass
class Array:
    """A NumPy array of objects; `items` in its order."""

    shape: tuple[int, ...] = (0,)
    items: tuple | list = ()


@dataclass(frozen=True)
class Storage:
    """The numbers of a tensor, which stand elsewhere under the name `key`."""

    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view into a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, data: bytes) -> np.ndarray:
        """The values, given the bytes of the storage."""
        if len(data) != self.storage.count * self.storage.dtype.itemsize:
            raise UnreadablePickle(
                f"a tensor has {len(data)} bytes, not the {self.storage.count} numbers told"
            )
        numbers = np.frombuffer(data, self.storage.dtype)
        count, last = 1, self.offset
        for length, stride in zip(self.shape, self.strides, strict=True):
            count *= length
            last += (length - 1) * stride
        if count == 0:
            return np.zeros(self.shape, numbers.dtype)
        if count > len(numbers) or last >= len(numbers):
            raise UnreadablePickle("a tensor reaches beyond its numbers")
        steps = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps).copy()


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle named, and that means something here."""

    name: str


_TYPES = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2",
    "Char": "<i1", "Byte": "<u1", "Bool": "?",
}  # fmt: skip
STORAGES = {f"torch.{name}Storage": np.dtype(code) for name, code in _TYPES.items()}


def load(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The next pickle of `file`, which then stands behind it, and the storages it speaks of by their keys."""
    machine = _Machine(file)
    try:
        return machine.run(), machine.storages
    except UnreadablePickle:
        raise
    except _DAMAGE as error:
        raise UnreadablePickle(f"damaged pickle at byte {file.tell()} ({type(error).__name__})") from error


class _Machine:
    def __init__(self, file: io.BytesIO):
        self.file = file
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.budget = 4 * len(file.getbuffer()) + 4096  # bytes that functions may make

    def run(self) -> Any:
        for _ in range(MAX_OPERATIONS):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            if code not in _STEPS:
                raise UnreadablePickle(f"damaged pickle, or operation {code!r}, which data do not need")
            _STEPS[code](self)
        raise UnreadablePickle(f"pickle of more than {MAX_OPERATIONS} operations")

    # reading

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise UnreadablePickle("a pickle that ends early")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        line = self.file.readline(200)
        if not line.endswith(b"\n"):
            raise UnreadablePickle("a pickle that ends early")
        return line[:-1].decode("ascii")

    def long(self) -> int:
        size = self.number("<B")
        if size > 9:
            raise UnreadablePickle("an integer of more than 64 bits")
        return int.from_bytes(self.take(size), "little", signed=True)

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def tuple(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str:  # hashing nested tuples could take for ever
                raise UnreadablePickle(f"a dictionary with {type(key).__name__} keys")
            self.stack[-1][key] = value

    # names, and what they stand for

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if full not in _CALLS and full not in STORAGES and full != "numpy.ndarray":
            raise UnreadablePickle(f"refers to {full[:80]!r}, which is no data")
        self.push(_Name(full))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError
        self.name(module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or function.name not in _CALLS or type(arguments) is not tuple:
            raise UnreadablePickle("calls what is no function")
        self.push(_CALLS[function.name](self, *arguments))

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple:
            raise TypeError
        if type(value) is DType and state[1] in ("<", ">", "|", "="):
            value.order = state[1]
        elif type(value) is Array:
            _, shape, dtype, _, items = state
            if type(dtype) is not DType or dtype.kind != "O" or type(items) is not list:
                raise UnreadablePickle("an array that does not hold objects")
            value.shape, value.items = _sizes(shape), items
        else:
            raise UnreadablePickle(f"gives a state to {type(value).__name__}")

    def persistent(self) -> None:
        word, kind, key, _, count, *_ = self.stack.pop()
        if word != "storage" or type(kind) is not _Name or kind.name not in STORAGES:
            raise UnreadablePickle("refers to something outside that is no storage of torch")
        if type(key) is not str or type(count) is not int or count < 0:
            raise TypeError
        self.storages[key] = Storage(STORAGES[kind.name], key, count)
        self.push(self.storages[key])

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise UnreadablePickle("a pickle that grows without end")


def _encode(machine: _Machine, text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TypeError
    machine.spend(len(text))
    return text.encode("latin1")


def _dtype(machine: _Machine, code: str, *flags: bool) -> DType:
    found = re.fullmatch(r"([OUbiuf])(\d{1,5})", code)
    if not found:
        raise UnreadablePickle(f"NumPy values of type {code[:20]!r}")
    return DType(found[1], int(found[2]))


def _scalar(machine: _Machine, dtype: DType, data: bytes) -> str | int | float | bool:
    if type(dtype) is not DType or type(data) is not bytes:
        raise TypeError
    machine.spend(len(data))
    if dtype.kind == "U":
        if len(data) != 4 * dtype.size:
            raise ValueError
        return data.decode("utf-32-be" if dtype.order == ">" else "utf-32-le").rstrip("\0")
    value = np.frombuffer(data, np.dtype(f"{dtype.order}{dtype.kind}{dtype.size}"))  # refuses objects
    return value.reshape(()).item()


def _array(machine: _Machine, kind: _Name, shape: tuple, code: bytes) -> Array:
    if kind != _Name("numpy.ndarray"):
        raise TypeError
    return Array()


def _tensor(
    machine: _Machine, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any
) -> Tensor:
    if type(storage) is not Storage or len(shape) != len(strides):
        raise TypeError
    return Tensor(storage, *_sizes((offset,)), _sizes(shape), _sizes(strides))


def _ordered_dict(machine: _Machine) -> dict:
    return {}


def _sizes(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """`numbers` if they can be sizes of an array."""
    if type(numbers) is not tuple or len(numbers) > 8:
        raise TypeError
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError
    return numbers


_CALLS: dict[str, Callable] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "torch._utils._rebuild_tensor_v2": _tensor,
}

_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # version
    b"\x95": lambda m: m.take(8),  # length of a frame
    b"(": _Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": lambda m: m.push(m.long()),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8c": lambda m: m.push(m.take(m.number("<B")).decode()),
    b"X": lambda m: m.push(m.take(m.number("<I")).decode()),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b")": lambda m: m.push(()),
    b"]": lambda m: m.push([]),
    b"}": lambda m: m.push({}),
    b"t": lambda m: m.push(tuple(m.to_mark())),
    b"\x85": lambda m: m.tuple(1),
    b"\x86": lambda m: m.tuple(2),
    b"\x87": lambda m: m.tuple(3),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.to_mark()),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.to_mark()),
    b"q": lambda m: m.memo.__setitem__(m.number("<B"), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number("<I"), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _Machine.stack_name,
    b"R": _Machine.call,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}  # fmt: skip
