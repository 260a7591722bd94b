"""MATLAB files: what comes back, and that no file hurts more than the child process that parses it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from dmtl.data.benchmarks import mat
from dmtl.data.benchmarks.mat import read_mat
from dmtl.errors import DataError

LABELS = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.mat"
    scipy.io.savemat(path, {"LabelMap": LABELS, "other": 1.0})
    return path


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch):
    """Puts a child in place of the real one, or the real one with another `loadmat`."""

    def put(program: str = "", loadmat: str = "") -> None:
        if loadmat:
            program = f"""
                import os, runpy, scipy.io.matlab, signal, time
                def loadmat(file, variable_names):
                    {loadmat}
                scipy.io.matlab.loadmat = loadmat
                runpy.run_path({str(mat._CHILD)!r}, run_name="__main__")
            """
        script = tmp_path / "child.py"
        script.write_text(textwrap.dedent(program))
        monkeypatch.setattr(mat, "_CHILD", script)
        mat._close()

    yield put
    mat._close()


def refusal(path: Path, names=("LabelMap",)) -> str:
    """What the DataError says of the file, which it must name."""
    with pytest.raises(DataError) as error:
        read_mat(path, names)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.endswith(f", expected a MATLAB v5 file with {' and '.join(names)}")
    return message.removeprefix(f"{path}: ").split(", expected")[0]


def alive(pid: int) -> bool:
    """Whether there is such a process that is not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_text_cells_and_structs(tmp_path, compressed):
    path = tmp_path / "all.mat"
    cell = np.empty((2, 2), object)
    cell[0, 0], cell[1, 0], cell[0, 1], cell[1, 1] = "a", "b", np.float32(0.5), np.zeros((0, 0))
    people = np.zeros((1, 2), [("name", object), ("size", object)])
    people[0, 0], people[0, 1] = ("Ann", np.int16(-3)), ("", people[:, :0])
    numbers = {
        f"n_{code}": np.arange(-2, 4).reshape(2, 3).astype(code)
        for code in ["u1", "i1", "u2", "i2", "i4", "f4", "f8", ">f8"]
    }
    values = {
        "cell": cell,
        "people": people,
        "text": np.array(["ab", "cd"]),
        "yes": np.eye(2, dtype=bool),
        "n_f9": np.zeros((2, 3, 4)),
    }
    scipy.io.savemat(path, {**values, **numbers}, do_compression=compressed)
    read = read_mat(path, [*values, *numbers])
    assert list(read) == [*values, *numbers]
    for name, array in numbers.items():
        assert read[name].dtype == array.dtype.newbyteorder("=") and np.array_equal(read[name], array), name
    assert read["cell"][:2] == ["a", "b"] and read["cell"][2] == [[0.5]] and read["cell"][3].shape == (0, 0)
    assert [sorted(person) for person in read["people"]] == [["name", "size"]] * 2
    assert read["people"][0] == {"name": "Ann", "size": [[-3]]} and read["people"][0]["size"].dtype == "i2"
    assert read["people"][1] == {"name": "", "size": []}
    assert read["text"] == "ab\ncd" and read["n_f9"].shape == (2, 3, 4)
    assert read["yes"].dtype == np.uint8 and read["yes"].tolist() == [[1, 0], [0, 1]]
    read["n_u1"][0, 0] = 7  # an array of one's own


def test_another_byte_order(tmp_path, labels):
    """A big-endian file, as old workstations wrote them."""
    path = tmp_path / "big.mat"
    matrix = struct.pack(">6I", 6, 8, 11, 0, 5, 8) + struct.pack(">2i", 2, 2)  # flags (uint16), dimensions
    matrix += struct.pack(">2I", 1, 8) + b"LabelMap"
    matrix += struct.pack(">2I4H", 4, 8, 1, 2, 300, 65535)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    path.write_bytes(header + struct.pack(">2I", 14, len(matrix)) + matrix)
    read = read_mat(path, ["LabelMap"])["LabelMap"]
    assert read.dtype == np.dtype("<u2") and read.tolist() == [[1, 300], [2, 65535]]


def test_what_it_does_not_hold(tmp_path, labels):
    assert "no variable nothing" in refusal(labels, ["nothing"])
    assert "no variable nothing" in refusal(labels, ["LabelMap", "nothing"])
    for value, word in ((1 + 2j, "complex"), (scipy.sparse.eye(3).tocsc(), "cs")):
        scipy.io.savemat(tmp_path / "odd.mat", {"LabelMap": value})
        assert word in refusal(tmp_path / "odd.mat")


def test_files_of_another_kind(tmp_path, labels, monkeypatch):
    assert "No such file" in refusal(tmp_path / "none.mat")
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.mat")
    assert "not a file" in refusal(tmp_path / "pipe.mat")
    kinds = {
        b"": "not a MATLAB file",
        b"\x89PNG" + bytes(200): "not a MATLAB file",
        labels.read_bytes()[:100]: "parsed",
        labels.read_bytes()[:-200]: "parsed",
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n": "v7.3",
    }
    for content, reason in kinds.items():
        (tmp_path / "other.mat").write_bytes(content)
        assert reason in refusal(tmp_path / "other.mat")
    scipy.io.savemat(tmp_path / "four.mat", {"LabelMap": LABELS.astype(float)}, format="4")
    assert "not a MATLAB file of version 5" in refusal(tmp_path / "four.mat")
    monkeypatch.setattr(mat, "MAX_FILE_BYTES", 1 << 10)
    assert "larger than" in refusal(labels)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its parser crashed (Segmentation fault)"),
        ("os._exit(3)", "its parser crashed (exit status 3)"),
        ("time.sleep(99)", "not parsed within 1 s"),
        ("raise ValueError('x\\ny')", "cannot be parsed (ValueError: x y)"),
        ("raise MemoryError", "needs more than 1024 MiB to read"),
        ("return {'LabelMap': None}", "cannot be parsed (ValueError: holds a NoneType)"),
    ],
)
def test_a_parser_that_fails(stand_in, labels, monkeypatch, body, reason):
    """Each failure is that file's; the next file is read by a child that lives."""
    if "sleep" in body:
        monkeypatch.setattr(mat, "SECONDS", 1)
    stand_in(loadmat=body)
    assert refusal(labels) == reason
    monkeypatch.undo()
    mat._close()
    assert np.array_equal(read_mat(labels, ["LabelMap"])["LabelMap"], LABELS)


def test_endless_computing_is_stopped_without_the_parent(stand_in, labels, monkeypatch):
    """Where the clock runs on without the process, as on a machine with other work."""
    monkeypatch.setattr(mat.threading, "Timer", lambda seconds, function: Timer(300, function))
    monkeypatch.setattr(mat, "SECONDS", 1)
    stand_in(loadmat="while True: pass")
    assert refusal(labels) == "not parsed within 1 s"


@pytest.mark.parametrize(
    "reply",
    [
        {"LabelMap": ("<u2", (2, 3), bytearray(8))},
        {"LabelMap": ("<u2", (-2, -2), bytearray(8))},
        {"LabelMap": ("O", (1,), bytearray(8))},
        {"LabelMap": (3,)},
        {},
        [],
    ],
)
def test_an_answer_that_makes_no_sense(stand_in, labels, reply):
    stand_in(answering(pickle.dumps(reply, 5)))
    assert refusal(labels) == "its parser gave no sensible answer"


@pytest.mark.parametrize("reply", [b"not a pickle", pickle.dumps(os.system), pickle.dumps({1: 2})[:-1]])
def test_an_answer_is_not_trusted(stand_in, labels, reply):
    stand_in(answering(reply))
    assert refusal(labels).startswith("its parser crashed")


def answering(reply: bytes) -> str:
    """A child that gives this answer to anything."""
    return f"""
        import pickle, sys
        def send(answer):
            sys.stdout.buffer.write(answer)
            sys.stdout.buffer.flush()
        send(pickle.dumps(None))
        pickle.load(sys.stdin.buffer)
        send({reply!r})
    """


def bomb(path: Path, rows: int, columns: int) -> Path:
    """A compressed file of a few hundred kB with a matrix of rows x columns zeros."""
    body = struct.pack("<6I2i", 6, 8, 9, 0, 5, 8, rows, columns) + struct.pack("<2I", 1, 8) + b"LabelMap"
    body += struct.pack("<2I", 2, rows * columns)
    packer = zlib.compressobj(1)
    packed = packer.compress(struct.pack("<2I", 14, len(body) + rows * columns) + body)
    packed += b"".join(packer.compress(bytes(columns)) for _ in range(rows)) + packer.flush()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + struct.pack("<2I", 15, len(packed)) + packed)
    return path


def test_small_files_that_grow(tmp_path, labels, monkeypatch):
    """More pixels than an image may have; more memory than the child may take."""
    path = bomb(tmp_path / "bomb.mat", 8, 4)
    assert read_mat(path, ["LabelMap"])["LabelMap"].shape == (8, 4)
    bomb(path, 80, 1_000_000)
    assert path.stat().st_size < 1 << 20
    assert "array of 80000000 elements" in refusal(path)
    mat._close()
    monkeypatch.setattr(mat, "MAX_MEMORY", 256 << 20)
    monkeypatch.setattr(mat, "SECONDS", 300)  # memory is to run out, not time
    assert refusal(bomb(path, 600, 1_000_000)) == "needs more than 256 MiB to read"
    assert np.array_equal(read_mat(labels, ["LabelMap"])["LabelMap"], LABELS)
    mat._close()


def test_without_scipy(tmp_path, labels, monkeypatch):
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("raise ImportError('no scipy here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mat._close()
    assert refusal(labels) == "scipy cannot be imported (no scipy here): pip install 'dmtl[pascal]'"
    mat._close()


def test_one_child_serves_many_files(labels):
    mat._close()
    read_mat(labels, ["LabelMap"])
    child = mat._child.pid
    refusal(labels, ["nothing"])
    read_mat(labels, ["LabelMap"])
    assert mat._child.pid == child
    mat._child.kill()
    assert gone(child)
    assert np.array_equal(read_mat(labels, ["LabelMap"])["LabelMap"], LABELS)
    assert mat._child.pid != child


def _in_a_worker(path, queue):
    inherited = mat._child
    total = int(read_mat(path, ["LabelMap"])["LabelMap"].sum())
    queue.put((inherited is None, mat._child.pid, total))


def test_forked_workers_have_their_own(labels):
    read_mat(labels, ["LabelMap"])
    mine = mat._child.pid
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_in_a_worker, args=(labels, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert all(clean and total == LABELS.sum() for clean, _, total in answers)
    pids = {pid for _, pid, _ in answers}
    assert len(pids) == 2 and mine not in pids
    assert all(gone(pid) for pid in pids)
    assert np.array_equal(read_mat(labels, ["LabelMap"])["LabelMap"], LABELS) and mat._child.pid == mine


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_the_child_ends_with_its_parent(labels, end):
    program = f"""
        import os, sys
        from dmtl.data.benchmarks import mat
        mat.read_mat({str(labels)!r}, ["LabelMap"])
        print(mat._child.pid, "scipy" in sys.modules, flush=True)
        {end}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    pid, imported = done.stdout.split()
    assert imported == "False" and gone(int(pid))


def test_ctrl_c_leaves_no_child(stand_in, labels):
    """Interrupted while it waits for an answer: the child is ended, and the next file has another."""
    stand_in(loadmat="time.sleep(99)")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_mat(labels, ["LabelMap"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert mat._child is None and not subprocess._active


def test_threads_take_turns(labels):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda _: int(read_mat(labels, ["LabelMap"])["LabelMap"].sum()), range(40)))
    assert sums == [LABELS.sum()] * 40


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to eight bytes changed, mostly in its headers, or with an end or a middle missing."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        place = rng.integers(0, min(len(data), 400) if rng.random() < 0.7 else len(data))
        data[place] = rng.choice([0, 1, 4, 9, 14, 15, 127, 128, 255, rng.integers(256)])
    cut = rng.random()
    if cut < 0.1:
        del data[rng.integers(1, len(data)) :]
    elif cut < 0.2:
        start = rng.integers(1, len(data))
        del data[start : start + rng.integers(1, 64)]
    return bytes(data)


def sources() -> list[bytes]:
    """Files of the two kinds of PASCAL-Context, with and without compression."""
    import io

    parts = np.zeros((1, 2), [("part_name", object), ("mask", object)])
    parts[0, 0], parts[0, 1] = ("head", np.eye(6, dtype=np.uint8)), ("torso", np.eye(6, dtype=np.uint8))
    objects = np.zeros(
        (1, 1), [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    )
    objects[0, 0] = ("person", np.uint8(15), np.ones((6, 6), np.uint8), parts)
    anno = np.zeros((1, 1), [("imname", object), ("objects", object)])
    anno[0, 0] = ("a", objects)
    files = []
    for variables in ({"LabelMap": LABELS}, {"anno": anno}):
        for compressed in (False, True):
            file = io.BytesIO()
            scipy.io.savemat(file, variables, do_compression=compressed)
            files.append(file.getvalue())
    return files


def damage(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Reads `count` damaged files; how many gave values, and how many crashed their parser."""
    rng, files, read, crashed = np.random.default_rng(seed), sources(), 0, 0
    path = folder / "damaged.mat"
    for number in range(count):
        path.write_bytes(mutated(files[number % len(files)], rng))
        name = ("LabelMap", "LabelMap", "anno", "anno")[number % len(files)]
        try:
            assert set(read_mat(path, [name])) == {name}
            read += 1
        except DataError as error:
            assert re.match(f"{re.escape(str(path))}: .*, expected a MATLAB v5 file with {name}$", str(error))
            crashed += "crashed" in str(error)
    return read, crashed


def test_damaged_files(tmp_path):
    read, _ = damage(tmp_path, 200, seed=1)
    assert 0 < read < 200


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    read, crashed = damage(tmp_path, 3_000, seed=2)
    assert 0 < read < 3_000 and crashed < 300
