"""The process that parses MATLAB files for `dmtl.data.benchmarks.mat`; it imports nothing of dmtl.

It is started with a socket as its standard input and the limits as JSON, says {"ready": true} or {"fatal":
why}, and then answers requests until the socket closes. A message is two lengths (`LENGTHS`), a text in JSON
and bytes:

    request   [names], the file
    reply     {"values": {name: tree}}, the numbers of its arrays one after the other
              {"error": why}, nothing;  {"fatal": why}, nothing, and the process ends

In a tree a string is text, a list a cell or a struct array, {"struct": {field: tree}} one element of a struct
array, {"array": [dtype, shape]} the next array of numbers.
"""

import io
import json
import resource
import socket
import struct
import sys

LENGTHS = struct.Struct("<QQ")


def main() -> None:
    limits = json.loads(sys.argv[1])
    channel = socket.socket(fileno=0)
    try:
        import scipy.io.matlab  # noqa: F401
    except ImportError as error:
        send(channel, {"fatal": str(error)})
        return
    allow(resource.RLIMIT_AS, limits["memory"])
    allow(resource.RLIMIT_CORE, 0)
    allow(resource.RLIMIT_FSIZE, 0)
    send(channel, {"ready": True})
    while (request := receive(channel)) is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        allow(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + limits["seconds"])
        try:
            tree, arrays = parse(*request, limits)
        except MemoryError:
            recovered = is_free(limits["memory"] // 2)
            reason = f"needs more than {limits['memory'] >> 20} MiB to read"
            send(channel, {"error" if recovered else "fatal": reason})
            if not recovered:
                return
        except Exception as error:  # scipy lets many types through on damaged files
            send(channel, {"error": f"{type(error).__name__}: {error}"})
        else:
            send(channel, {"values": tree}, arrays)
        request = tree = arrays = None  # before the next file needs the memory


def allow(resource_kind: int, amount: int) -> None:
    """Sets a limit of this process, which it can raise again up to the one it was started with."""
    hard = resource.getrlimit(resource_kind)[1]
    resource.setrlimit(resource_kind, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def is_free(memory: int) -> bool:
    """Whether there is still so much: a process that lost memory must not refuse files that are all right."""
    try:
        bytearray(memory)  # address space, not memory: nothing is touched
    except MemoryError:
        return False
    return True


def parse(names: list[str], content: memoryview, limits: dict) -> tuple[dict, list]:
    """The variables `names` of a file as trees, and the arrays in them."""
    from scipy.io import matlab

    variables = matlab.loadmat(io.BytesIO(content), variable_names=names)
    for name in names:
        if name not in variables:
            raise ValueError(f"no variable {name}")
    packer = Packer(limits)
    return {name: packer.pack(variables[name]) for name in names}, packer.arrays


class Packer:
    """Makes trees of what scipy returns; refuses whatever is neither numbers, text, cell nor struct."""

    def __init__(self, limits: dict) -> None:
        self.arrays, self.limits = [], limits
        self.values = self.bytes = 0

    def pack(self, value, depth: int = 0):
        import numpy as np
        from scipy.io import matlab

        self.values += 1
        if depth > self.limits["depth"] or self.values > self.limits["values"]:
            raise ValueError("too many values, or too deeply nested")
        special = (matlab.MatlabObject, matlab.MatlabFunction, matlab.MatlabOpaque)
        if not isinstance(value, np.ndarray) or isinstance(value, special):
            raise ValueError(f"holds a {type(value).__name__}")
        if value.size > self.limits["numbers"]:
            raise ValueError(f"holds an array of {value.size} elements")
        if value.dtype.names:
            fields, elements = value.dtype.names, value.ravel(order="F")
            return [{"struct": {f: self.pack(e[f], depth + 1) for f in fields}} for e in elements]
        if value.dtype.kind == "O":
            return [self.pack(element, depth + 1) for element in value.ravel(order="F")]
        if value.dtype.kind == "U":
            rows = [str(row) for row in value.ravel()]
            self.values += sum(map(len, rows))
            return rows[0] if len(rows) == 1 else "\n".join(rows)
        if value.dtype.kind not in "buif":
            raise ValueError(f"holds values of type {value.dtype}")
        dtype = "<u1" if value.dtype.kind == "b" else value.dtype.newbyteorder("<").str.replace("|", "<")
        self.bytes += value.nbytes
        if self.bytes > self.limits["bytes"]:
            raise ValueError("holds too much")
        self.arrays.append(np.ascontiguousarray(value, dtype=dtype))
        return {"array": [dtype, list(value.shape)]}


def send(channel: socket.socket, message: dict, arrays: list = ()) -> None:
    text = json.dumps(message).encode()
    channel.sendall(LENGTHS.pack(len(text), sum(array.nbytes for array in arrays)) + text)
    for array in arrays:
        channel.sendall(array.reshape(-1).view("u1"))


def receive(channel: socket.socket) -> tuple[list[str], memoryview] | None:
    """Names and the file; None when the other side is gone."""
    head = read(channel, LENGTHS.size)
    if head is None:
        return None
    text_length, content_length = LENGTHS.unpack(head)
    text, content = read(channel, text_length), read(channel, content_length)
    return None if text is None or content is None else (json.loads(bytes(text)), content)


def read(channel: socket.socket, length: int) -> memoryview | None:
    data = memoryview(bytearray(length))
    rest = data
    while rest:
        count = channel.recv_into(rest)
        if not count:
            return None
        rest = rest[count:]
    return data


if __name__ == "__main__":
    main()
