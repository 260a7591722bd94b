"""The process that reads damaged files: `python -m tests.fuzz.worker MODULE FOLDER READER:FIRST:COUNT ...`.

One line of JSON for each: [reader, number, outcome, what happened], the outcome "read", "refused" or a fault.
A file that takes longer than SECONDS of computing, or WAIT by the clock, ends the process by a signal, as a
crash does.
"""

from __future__ import annotations

import importlib
import json
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from random import Random

from dmtl.errors import DataError
from tests.fuzz.readers import Reader

SECONDS, WAIT = 5, 120
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pickle.find_class",
    "subprocess.Popen", "socket.connect", "shutil.rmtree", "os.remove", "os.rename", "os.mkdir",
)  # fmt: skip


class Canary:
    """Hears of everything that a reader has no business to do."""

    def __init__(self) -> None:
        self.listening, self.heard = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.listening:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes and not str(arguments[0]).endswith(".pyc") and not isinstance(arguments[0], int):  # a pipe
            self.heard.append(f"{event} {arguments[0]} {arguments[1]}")
        elif event in FORBIDDEN and "_mat_child.py" not in str(arguments):
            self.heard.append(f"{event} {arguments!r:.200}")


def outcome(reader: Reader, path: Path, canary: Canary) -> tuple[str, ...]:
    """What came of reading `path`."""
    canary.heard, canary.listening = [], True
    try:
        reader.read(path)
        result: tuple[str, ...] = ("read",)
    except DataError as error:
        result = ("refused",) if _fits(error, path, reader) else ("wrong message", str(error))
        if _short_of_memory(error):
            result = ("memory", str(error))
    except MemoryError:
        result = ("memory", "MemoryError")
    except BaseException:
        result = ("wrong error", traceback.format_exc())
    finally:
        canary.listening = False
    return ("code", "; ".join(canary.heard)) if canary.heard else result


def _fits(error: DataError, path: Path, reader: Reader) -> bool:
    """One line that begins with the file; of several that belong together, with any of them."""
    text = str(error)
    begins = text.startswith(str(reader.names(path)))
    return begins and len(text.splitlines()) == 1 and text.isprintable() and len(text) < 1000


def _short_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(reader: Reader, name: str, numbers: range, folder: Path, canary: Canary) -> None:
    folder.mkdir(parents=True)
    whole = {path: path.read_bytes() for path in sorted(reader.prepare(folder))}
    for path in whole if reader.valid else ():  # and with it whatever has to be imported
        reader.read(path)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + reader.memory, resource.RLIM_INFINITY))
    for number in numbers:
        rng = Random(f"{name} {number}")
        path = rng.choice(list(whole))
        replace(path, reader.damage(rng, whole[path], whole[rng.choice(list(whole))]))
        limit(SECONDS, WAIT)
        result = outcome(reader, path, canary)
        limit(0, 0)
        print(json.dumps([name, number, *result]), flush=True)
        replace(path, whole[path])
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def replace(path: Path, content: bytes) -> None:
    """Write a file again. Many file systems flush one to the disk that is cut to nothing first."""
    path.unlink()
    path.write_bytes(content)


def limit(computing: float, clock: float) -> None:
    """Seconds after which a signal, which nobody handles, ends the process; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, computing)
    signal.setitimer(signal.ITIMER_REAL, clock)


def main(module: str, folder: str, *jobs: str) -> None:
    readers, canary = importlib.import_module(module).READERS, Canary()
    for job in jobs:
        name, first, count = job.split(":")
        place = Path(folder, name)
        shutil.rmtree(place, ignore_errors=True)
        run(readers[name], name, range(int(first), int(first) + int(count)), place, canary)


if __name__ == "__main__":
    main(*sys.argv[1:])
