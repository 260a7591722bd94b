"""Processes that read data: one that dies or cannot hand over its batch ends a run with its state saved."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dmtl.data import make_loader, open_dataset
from dmtl.data.loading.batch import Batch
from dmtl.data.parallel import watched
from dmtl.errors import ConfigError, WorkerError
from dmtl.train.trainer import RunStopped, Trainer


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """DataLoader looks for dead processes every 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def test_a_killed_process_ends_the_run_with_its_state_saved(config_for):
    config = config_for("killed", data=dict(workers=2), optim=dict(steps=12), log=dict(checkpoint_every=100))
    whole = config_for("whole", optim=dict(steps=12), log=dict(checkpoint_every=100))

    def kill(step, steps, loss):
        if step == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(
        RunStopped, match=r"a process that reads data died .* data\.workers to 0; stopped after"
    ) as stop:
        Trainer(config, on_step=kill).fit()
    assert stop.value.status == 1
    resumed = Trainer(config, resume=True)
    assert 1 <= resumed.step < 12
    uninterrupted = Trainer(whole)
    assert resumed.fit() == uninterrupted.fit()
    for ours, theirs in zip(resumed.model.parameters(), uninterrupted.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def full(self):
    """What pickling a batch does if shared memory is full."""
    raise OSError(28, "No space left on device")


def test_a_batch_that_cannot_be_handed_over(images, config_for, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(Batch, "__reduce__", full)
    loader = make_loader(open_dataset(images, "train"), batch_size=2, workers=1)
    with pytest.raises(WorkerError, match=r"shared memory .*is too small"):
        list(loader)
    assert "No space left on device" in capfd.readouterr().err
    config = config_for(data=dict(workers=1))
    with pytest.raises(RunStopped, match="too small.* stopped after step 0 of 6; the state is saved"):
        Trainer(config).fit()
    assert (tmp_path / "run/checkpoints/step-00000000.pt").is_file()


class Loader:
    """A loader whose first result raises."""

    num_workers = 1

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),  # its batch was on the way
        (EOFError(), True),
        (FileNotFoundError(2, "No such file or directory"), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
        (RuntimeError("something else"), False),
    ],
)
def test_which_errors_are_those_of_a_dead_process(error, died):
    with pytest.raises(WorkerError if died else type(error)) as caught:
        list(watched(Loader(error), "data.workers"))
    assert isinstance(caught.value, WorkerError) == died


def test_evaluation_notices_too(images, config_for, monkeypatch):
    """The state of the step before it is saved."""
    trainer = Trainer(config_for(data=dict(workers=1), log=dict(checkpoint_every=100)))
    reads = type(trainer.data.val).read

    def read(self, *arguments, **options):
        if self is trainer.data.val:
            os.kill(os.getpid(), signal.SIGKILL)
        return reads(self, *arguments, **options)

    monkeypatch.setattr(type(trainer.data.val), "read", read)
    monkeypatch.setattr(type(trainer.data.val), "warm", lambda *_, **__: None)
    with pytest.raises(RunStopped, match="stopped after step 3 of 6"):
        trainer.fit()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_ends_a_wait_for_data(config_for, monkeypatch, number):
    trainer = Trainer(config_for(log=dict(checkpoint_every=100)))
    stream = trainer.loader.stream

    def stuck(step):
        for count, batch in enumerate(stream(step)):
            if count == 2:
                threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
                time.sleep(60)
            yield batch

    monkeypatch.setattr(trainer.loader, "stream", stuck)
    began = time.monotonic()
    with pytest.raises(RunStopped, match=f"stopped by {number.name} after step 2 of 6") as stop:
        trainer.fit()
    assert time.monotonic() - began < 30 and stop.value.status == 128 + number
    assert Trainer(trainer.config, resume=True).step == 2


ONE = r"data\.size = \[32, 32\] leaves one pixel .* optim\.freeze_bn"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (dict(optim=dict(batch_size=1)), True),
        (dict(optim=dict(batch_size=2), execution=dict(micro_batch=1)), True),
        (dict(optim=dict(batch_size=3), execution=dict(micro_batch=2)), True),
        (dict(optim=dict(batch_size=1), data=dict(size=(20, 9))), True),
        (dict(optim=dict(batch_size=1), data=dict(size=(32, 40))), False),
        (dict(optim=dict(batch_size=1, freeze_bn=True)), False),
        (dict(optim=dict(batch_size=4), execution=dict(micro_batch=2)), False),
    ],
)
def test_batch_norms_of_a_single_value_are_refused(config_for, options, refused):
    config = config_for(**options)
    if refused:
        sides = ", ".join(map(str, config.data.size))
        with pytest.raises(ConfigError, match=ONE.replace("32, 32", sides)):
            Trainer(config)
    else:
        trainer = Trainer(config)
        trainer.take(next(trainer.loader.stream(0)))
