"""Parse MATLAB files for `dmtl.data.benchmarks.mat`, which runs this file as a separate process.

The process imports nothing of dmtl. It answers requests on standard input until that closes. Every message
is a pickle:

    first answer   None if scipy can be imported, otherwise a str with the reason
    request        (names of the wanted variables, content of a file)
    answer         {name: value}, or a str that says why the file cannot be parsed

A value is a str, a list, {field: value} or (dtype, shape, bytes of the numbers).
"""

import errno
import io
import pickle
import resource
import sys


def main(memory: int, seconds: int, most_numbers: int) -> None:
    """Answer requests until standard input closes.

    Args:
        memory: maximum address space of this process, bytes.
        seconds: maximum CPU time for one request.
        most_numbers: maximum number of elements of one array.
    """
    try:
        import scipy.io.matlab  # noqa: F401
    except ImportError as error:
        answer(f"scipy cannot be imported ({error}): pip install 'dmtl[pascal]'")
        return
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    answer(None)
    while True:
        try:
            names, content = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
        try:
            answer(parse(names, content, most_numbers))
        except MemoryError:
            # This process may not get all its memory back, so a new one must read the next file.
            sys.exit(errno.ENOMEM)
        except Exception as error:  # scipy raises many types on damaged files
            answer(f"{type(error).__name__}: {error}")


def answer(value: object) -> None:
    """Send a value to the parent as a pickle."""
    # Pickle all of it first: if memory runs out here, no partial answer is sent.
    data = pickle.dumps(value, protocol=5)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def limit(kind: int, amount: int) -> None:
    """Set a soft resource limit of this process; the hard limit stays, so a later call can raise it again."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def parse(names: list, content: bytes, most_numbers: int) -> dict:
    """Return the variables `names` of a file as plain types; raise ValueError if one is missing."""
    from scipy.io import matlab

    variables = matlab.loadmat(io.BytesIO(content), variable_names=names)
    for name in names:
        if name not in variables:
            raise ValueError(f"no variable {name}")
    return {name: plain(variables[name], most_numbers) for name in names}


def plain(value: object, most_numbers: int) -> object:
    """Convert a value of scipy's to plain types; only numbers, text, cells and structs are accepted."""
    import numpy as np
    from scipy.io import matlab

    special = (matlab.MatlabObject, matlab.MatlabFunction, matlab.MatlabOpaque)
    if not isinstance(value, np.ndarray) or isinstance(value, special):
        raise ValueError(f"holds a {type(value).__name__}")
    if value.size > most_numbers:
        raise ValueError(f"holds an array of {value.size} elements")
    if value.dtype.names:
        fields, elements = value.dtype.names, value.ravel(order="F")
        return [{field: plain(element[field], most_numbers) for field in fields} for element in elements]
    if value.dtype.kind == "O":
        return [plain(element, most_numbers) for element in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return "\n".join(str(row) for row in value.ravel())
    if value.dtype.kind not in "buif":
        raise ValueError(f"holds values of type {value.dtype}")
    dtype = "<u1" if value.dtype.kind == "b" else value.dtype.newbyteorder("<").str
    # a bytearray, so that the receiver's array can be written to
    return dtype, value.shape, bytearray(np.ascontiguousarray(value, dtype).reshape(-1).view("u1"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
