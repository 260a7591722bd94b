"""Run several trainings, some in parallel, each in its own process that can be stopped and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dmtl.errors import ConfigError
from dmtl.train.config import RunConfig
from dmtl.train.identity import identity, what_changed
from dmtl.train.signals import StopRequest
from dmtl.train.toml import read_config, write_config
from dmtl.train.trainer import RunStopped

_PAUSE = 0.2  # seconds between two checks of the processes


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: name of the run in messages.
        out: folder of the run. Its configuration and output are next to it, in `OUT.toml` and `OUT.log`.
        needs: folders of runs that must be finished first.
        config: function that returns the configuration; called when the runs in `needs` are finished.
    """

    name: str
    out: Path
    needs: tuple[Path, ...]
    config: Callable[[], RunConfig]

    @property
    def ready(self) -> bool:
        return all(map(finished, self.needs))

    @property
    def log(self) -> Path:
        return self.out.parent / f"{self.out.name}.log"


def finished(folder: Path) -> bool:
    """Return whether the run in a folder is finished."""
    return (folder / "metrics.json").is_file()


def run_jobs(
    jobs: Iterable[Job],
    processes: int = 1,
    say: Callable[[str], object] = lambda text: None,
    on_done: Callable[[], object] = lambda: None,
    on_wait: Callable[[], object] = lambda: None,
) -> list[str]:
    """Run unfinished jobs, `processes` at a time, and return a line for every run that failed.

    With more than one process, each uses one thread unless OMP_NUM_THREADS is set. Interrupted runs resume.
    If this process is asked to stop, it stops the runs, which save their state.

    Args:
        jobs: the runs.
        processes: number of runs at a time.
        say: called with a line for the user.
        on_done: called after every successful run.
        on_wait: called several times a second while runs are active, and once after a run has ended.

    Raises:
        ConfigError: a finished run has another configuration.
        RunStopped: SIGTERM or Ctrl-C arrived.
    """
    waiting, failed = list(jobs), []
    running: dict[subprocess.Popen, Job] = {}
    total, env = len(waiting), dict(os.environ)
    if processes > 1:
        env.setdefault("OMP_NUM_THREADS", "1")
    with StopRequest() as stop:
        try:
            while not stop.requested:
                waiting = [job for job in waiting if not _settled(job)]
                ready = [job for job in waiting if job.ready][: processes - len(running)]
                for job in ready:
                    waiting.remove(job)
                    running[_start(job, env)] = job
                    say(f"{job.name}: run {total - len(waiting)} of {total}, output in {job.log}")
                if not running:
                    break
                time.sleep(_PAUSE)
                ended = [process for process in running if process.poll() is not None]
                on_wait()
                for process in ended:
                    job = running.pop(process)
                    if process.returncode or not finished(job.out):
                        failed.append(f"{job.name} failed: {_last_line(job.log)} ({job.log})")
                        say(failed[-1])
                    else:
                        say(f"{job.name}: done")
                        on_done()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    if stop.requested:
        text = f"stopped by {stop.name}; finished runs are kept, and the same command resumes the others"
        raise RunStopped(text, 128 + stop.number)
    return failed + [f"{job.name} was skipped, because a run that it needs failed" for job in waiting]


def _settled(job: Job) -> bool:
    """Return whether a run is finished; raise ConfigError if it was trained with another configuration."""
    if not (job.ready and finished(job.out)):
        return False
    if changed := what_changed(identity(read_config(job.out / "config.toml")), job.config()):
        raise ConfigError(
            f"{job.out}: was trained with another configuration ({changed}); "
            "delete it or choose another folder"
        )
    return True


def _start(job: Job, env: dict[str, str]) -> subprocess.Popen:
    config = job.out.parent / f"{job.out.name}.toml"
    write_config(job.config(), config)
    command = [sys.executable, "-m", "dmtl", "train", str(config), "--resume"]
    with open(job.log, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
