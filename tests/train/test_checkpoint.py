"""Checkpoints: what is written comes back, whatever happens to the process, the disk or the file."""

import errno
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from dmtl.errors import CheckpointError
from dmtl.train import checkpoint
from dmtl.train.checkpoint import Checkpoints, DamagedCheckpoint, read_checkpoint, snapshot, state_bytes

FULL = f"No space left on device|{os.strerror(errno.EFBIG)}"


def state_of(step: int, size: int = 1000) -> dict:
    """A state whose every tensor tells its step."""
    tensors = {name: torch.full((size,), float(step)) for name in ("a", "b", "c")}
    return {"step": step, "model": tensors, "optimizer": {"state": {0: {"exp_avg": tensors["a"] + 1}}}}


def step_of(state: dict) -> int:
    """The step, when all parts belong to it."""
    step = state["step"]
    assert all(bool((tensor == step).all()) for tensor in state["model"].values())
    assert bool((state["optimizer"]["state"][0]["exp_avg"] == step + 1).all())
    return step


def file_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def silent(message: str) -> None:
    raise AssertionError(f"said {message!r}")


def same(ours, theirs) -> bool:
    """Equal to the last bit, types and strides included."""
    if isinstance(ours, torch.Tensor):
        return (
            ours.dtype == theirs.dtype
            and ours.stride() == theirs.stride()
            and ours.contiguous().numpy().tobytes() == theirs.contiguous().numpy().tobytes()
        )
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and (ours == theirs or ours != ours)


def test_round_trip(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    state = {
        "step": 3,
        "model": OrderedDict(
            w=parameter, kernel=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
        ),
        "types": [
            torch.arange(5),
            torch.tensor(2.0, dtype=torch.float64),
            torch.zeros(0, 3),
            torch.tensor(True),
        ],
        "rng": torch.get_rng_state(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0)}},
            "groups": [{"betas": (0.9, 0.999), "fused": True}],
        },
        "numbers": [0, -1, 2**70, 0.1, float("inf"), float("nan"), np.float64(0.3)],
        "text": "größer",
        "nothing": None,
        "empty": [{}, [], ()],
    }
    expected = state | {"model": {"w": parameter.detach(), "kernel": state["model"]["kernel"]}}
    expected["numbers"] = [*state["numbers"][:-1], 0.3]
    checkpoints = Checkpoints(tmp_path / "deep" / "er", keep=2)
    assert checkpoints.latest(silent) is None and not (tmp_path / "deep").exists()
    checkpoints.save(3, state, wait=True)
    checkpoints.wait()
    assert os.listdir(tmp_path / "deep" / "er") == ["step-00000003.pt"]
    assert same(expected, Checkpoints(tmp_path / "deep" / "er", keep=2).latest(silent))


def test_a_view_takes_its_own_room_only(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"view": torch.zeros(1_000_000)[:10]}, wait=True)
    assert file_of(tmp_path, 1).stat().st_size < 10_000
    checkpoints.wait()


def test_state_bytes():
    tensors = {"a": torch.zeros(3, 4), "b": [torch.zeros(5, dtype=torch.float64), (torch.zeros(2).half(),)]}
    assert state_bytes({**tensors, "c": 1.5, "d": None, "e": "text"}) == 48 + 40 + 4


@pytest.fixture
def gate(monkeypatch):
    """A disk so slow that a write begins when it is told to: gate.set()."""
    opened, write = threading.Event(), checkpoint._write_file

    def slow(path, state):
        assert opened.wait(600)
        write(path, state)

    monkeypatch.setattr(checkpoint, "_write_file", slow)
    yield opened
    opened.set()


def test_training_goes_on_during_the_write(tmp_path, gate):
    checkpoints, state = Checkpoints(tmp_path, keep=2), state_of(5)
    checkpoints.save(5, state)  # comes back although nothing can be written yet
    for tensor in state["model"].values():
        tensor.add_(1)
    state["optimizer"]["state"][0]["exp_avg"].zero_()
    state["step"] = 6
    assert not list(tmp_path.glob("step-*"))
    gate.set()
    checkpoints.wait()
    assert step_of(Checkpoints(tmp_path, keep=2).latest(silent)) == 5


def test_one_write_at_a_time(tmp_path, gate):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state_of(1))
    second = threading.Thread(target=checkpoints.save, args=(2, state_of(2)))
    second.start()
    second.join(0.2)
    assert second.is_alive() and not list(tmp_path.glob("step-*"))
    gate.set()
    second.join(600)
    assert not second.is_alive() and file_of(tmp_path, 1).exists()
    checkpoints.wait()
    assert step_of(checkpoints.latest(silent)) == 2


def test_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (2, 4, 9, 10, 100_000_000):
        checkpoints.save(step, state_of(step))
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path)) == ["step-00000009.pt", "step-00000010.pt", "step-100000000.pt"]
    assert step_of(checkpoints.latest(silent)) == 100_000_000
    checkpoints.save(5, state_of(5), wait=True)  # an earlier step never costs the file just written
    checkpoints.wait()
    assert file_of(tmp_path, 5).exists()


def test_what_a_checkpoint_cannot_hold(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(TypeError, match="save: state must consist of tensors, .* got object"):
        checkpoints.save(1, {"a": [1, {"b": object()}]})
    checkpoints.wait()
    assert os.listdir(tmp_path) == []


def test_a_process_that_ends_without_closing_finishes_its_write(tmp_path):
    code = (
        "import sys, time, torch\n"
        "from dmtl.train import checkpoint\n"
        "write = checkpoint._write_file\n"
        "checkpoint._write_file = lambda path, state: (time.sleep(0.5), write(path, state))\n"
        "checkpoint.Checkpoints(sys.argv[1], 1).save(7, {'w': torch.ones(3)})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=600)
    assert read_checkpoint(file_of(tmp_path, 7))["w"].tolist() == [1, 1, 1]


# Killed


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _dies(real, number: int, after: bool):
    """`real`, but the process is killed before or after the call of this number, counted from 1."""
    calls = iter(range(1, 1_000_000))

    def call(*args, **options):
        last = next(calls) == number
        if last and not after:
            _die()
        result = real(*args, **options)
        if last:
            _die()
        return result

    return call


MOMENTS = {
    "before the first byte": (checkpoint, "_write_file", 1, False),
    "in the middle": (checkpoint._Digesting, "write", 20, True),
    "before the digest": (torch, "save", 1, True),
    "before the file is synced": (os, "fsync", 1, False),
    "before the new name": (os, "replace", 1, False),
    "after the new name": (os, "replace", 1, True),
    "before an old one goes": (Path, "unlink", 1, False),
    "at the end": (Path, "unlink", 1, True),
}


def _killed_while_saving(folder: Path, moment: str) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), wait=True)
    where, name, number, after = MOMENTS[moment]
    setattr(where, name, _dies(getattr(where, name), number, after))
    checkpoints.save(3, state_of(3), wait=True)


def in_child(target, *arguments) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_inside_a_write(tmp_path, moment):
    child = in_child(_killed_while_saving, tmp_path, moment)
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    renamed = moment in list(MOMENTS)[5:]
    checkpoints = Checkpoints(tmp_path, keep=2)
    left_over = [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert len(left_over) == (not renamed)
    assert step_of(checkpoints.latest(silent)) == (3 if renamed else 2)
    assert len(os.listdir(tmp_path)) == (2 if moment == "at the end" else 3)  # reading removed nothing
    checkpoints.save(4, state_of(4), wait=True)
    checkpoints.wait()
    names = ["step-00000003.pt" if renamed else "step-00000002.pt", "step-00000004.pt"]
    assert sorted(os.listdir(tmp_path)) == names


def _saves_on_and_on(folder: Path, first: int, done) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    for step in range(first, first + 1_000_000):
        checkpoints.save(step, state_of(step, 50_000))
        done.value = step - 1  # the one before is on disk


def test_killed_at_random_moments(tmp_path):
    rng, last = random.Random(0), 0
    checkpoints = Checkpoints(tmp_path, keep=2)
    for _ in range(25):
        done = multiprocessing.get_context("fork").Value("q", 0, lock=False)
        child = in_child(_saves_on_and_on, tmp_path, last + 1, done)
        deadline = time.monotonic() + 600
        while done.value <= last and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        child.kill()
        child.join()
        state = checkpoints.latest(silent)
        found = 0 if state is None else step_of(state)
        assert found >= done.value and len(os.listdir(tmp_path)) <= 4
        last = found
    assert last >= 25


# Damaged


def one_file(folder: Path) -> tuple[Path, bytes]:
    checkpoints = Checkpoints(folder, keep=9)
    checkpoints.save(1, state_of(1), wait=True)
    checkpoints.wait()
    return file_of(folder, 1), file_of(folder, 1).read_bytes()


def damaged_copies(content: bytes):
    """Every byte of the digest changed; then 200 single bytes, 200 ends, 200 blocks, some longer files."""
    rng, size = random.Random(1), len(content)
    for offset in [*range(size - 32, size), *(rng.randrange(size) for _ in range(200))]:
        yield content[:offset] + bytes([content[offset] ^ rng.randrange(1, 256)]) + content[offset + 1 :]
    for end in [*range(57), *(rng.randrange(size) for _ in range(200)), size - 1]:
        yield content[:end]
    for _ in range(200):
        length = rng.choice([16, 512, 4096])
        start = rng.randrange(max(1, size - length))
        zeroed = content[:start] + bytes(length) + content[start + length :]
        if zeroed != content:
            yield zeroed
        yield content[:start] + content[start + length :]
    yield from (content + b"\0", content + bytes(4096), content * 2, bytes(size), b"text", os.urandom(size))


def test_all_damage_is_seen_before_anything_is_unpickled(tmp_path, monkeypatch):
    path, content = one_file(tmp_path)
    assert step_of(read_checkpoint(path)) == 1
    monkeypatch.setattr(torch, "load", lambda *args, **options: silent("loaded"))
    count = 0
    for copy in damaged_copies(content):
        path.write_bytes(copy)
        with pytest.raises(DamagedCheckpoint, match=rf"^{re.escape(str(path))}: damaged \("):
            read_checkpoint(path)
        count += 1
    assert count > 850
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="torch cannot load it .said 'loaded'"):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:-30] + bytes(30)])
def test_the_one_before_is_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), wait=True)
    checkpoints.wait()
    contents = {}
    for step in (2, 3):
        contents[step] = damage(file_of(tmp_path, step).read_bytes())
        file_of(tmp_path, step).write_bytes(contents[step])
    said = []
    again = Checkpoints(tmp_path, keep=3)
    assert step_of(again.latest(said.append)) == 1
    assert len(said) == 2
    for message, step in zip(said, (3, 2), strict=True):
        path = file_of(tmp_path, step)
        assert message.startswith(f"{path}: damaged (")
        assert message.endswith(f", kept as {path.name}.damaged; using step 1")
        assert path.with_name(path.name + ".damaged").read_bytes() == contents[step]
    assert step_of(again.latest(silent)) == 1


def test_all_damaged(tmp_path):
    paths = [file_of(tmp_path, step) for step in (1, 2)]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(bytes(56))
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path, keep=2).latest(silent)
    assert str(caught.value) == (
        f"{tmp_path}: no intact checkpoint to resume from: "
        f"{paths[1]}: damaged (its content does not match its SHA-256); "
        f"{paths[0]}: damaged (its content does not match its SHA-256)"
    )
    assert all(path.exists() for path in paths)


class Payload:
    """What a stranger may put into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_whole_but_foreign(tmp_path):
    one_file(tmp_path)
    checkpoint._write_file(str(file_of(tmp_path, 2)), {"step": Payload(tmp_path / "executed")})
    with pytest.raises(CheckpointError, match="its SHA-256 matches, but torch cannot load it") as caught:
        Checkpoints(tmp_path, keep=1).latest(silent)
    assert not isinstance(caught.value, DamagedCheckpoint) and not (tmp_path / "executed").exists()


def test_a_bad_sector_is_damage(tmp_path, monkeypatch):
    path, _ = one_file(tmp_path)

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint, "_is_whole", fails)
    with pytest.raises(DamagedCheckpoint, match="cannot be read: Input/output error"):
        read_checkpoint(path)


# Disks


def _told_of_a_failed_write(folder: Path, big: dict, what_next) -> None:
    """Step 1 is saved, step 2 is too big; `what_next` is the call that tells."""
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, state_of(1))
    checkpoints.save(2, big)
    expected = (
        rf"cannot write {file_of(folder, 2)}: ({FULL}); "
        rf"the last good checkpoint is {file_of(folder, 1)}$"
    )
    with pytest.raises(OSError, match=expected) as caught:
        what_next(checkpoints)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert os.listdir(folder) == ["step-00000001.pt"]
    checkpoints.save(3, state_of(3), wait=True)  # told once; smaller ones go on
    assert os.listdir(folder) == ["step-00000003.pt"] and step_of(checkpoints.latest(silent)) == 3
    checkpoints.wait()


NEXT = {
    "save": lambda c: c.save(4, state_of(4)),
    "save, waiting": lambda c: c.save(4, state_of(4), wait=True),
    "wait": lambda c: c.wait(),
}


@pytest.mark.parametrize("what_next", NEXT)
def test_full_disk(tiny_disk, what_next):
    _told_of_a_failed_write(tiny_disk, {"w": torch.zeros(100_000)}, NEXT[what_next])


@pytest.mark.parametrize(
    "tensors", [{"w": torch.zeros(100_000)}, {str(n): torch.zeros(9) for n in range(800)}]
)
def test_files_too_large(tmp_path, tensors):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        _told_of_a_failed_write(tmp_path, tensors, NEXT["wait"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_nothing_good_before(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file", keep=1)
    with pytest.raises(OSError, match="cannot write .*: .*; no earlier one exists"):
        checkpoints.save(1, state_of(1), wait=True)
    checkpoints.wait()


def test_read_only_folder(tiny_disk):
    checkpoints = Checkpoints(tiny_disk, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state_of(step), wait=True)
    file_of(tiny_disk, 2).write_bytes(b"torn")
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(
        OSError, match=f"cannot write {file_of(tiny_disk, 3)}: Read-only file system; the last"
    ):
        checkpoints.save(3, state_of(3), wait=True)
    said = []
    assert step_of(checkpoints.latest(said.append)) == 1
    assert said[0].endswith("left in place; using step 1") and file_of(tiny_disk, 2).exists()
    checkpoints.wait()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_snapshot_of_a_gpu():
    size, stream = 4_000_000, torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = torch.zeros(size, device="cuda")
        for _ in range(50):
            tensor += 1
        copy = snapshot(
            {"w": tensor, "k": torch.ones(2, 3, 4, 4, device="cuda").to(memory_format=torch.channels_last)}
        )
        tensor.zero_()
    assert copy["w"].device.type == "cpu" and copy["w"].is_pinned() and bool((copy["w"] == 50).all())
    assert copy["k"].is_contiguous(memory_format=torch.channels_last)
