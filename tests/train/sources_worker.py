"""A process of a run on several sources: `sources_worker.py CONFIG OUT RESULT KILL_AFTER`.

It trains as CONFIG says in the folder OUT, from its last checkpoint on, and writes weights and metrics to
RESULT-<rank>.pt. It kills itself after step KILL_AFTER (-1: never) of a run that starts at the beginning.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys

import torch

from dmtl.train.toml import read_config
from dmtl.train.trainer import Trainer


def train(config: str, out: str, result: str, kill_after: int = -1) -> dict:
    run = dataclasses.replace(read_config(config), out=out)

    def on_step(step: int, steps: int, loss: float) -> None:
        if step == kill_after and start == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = Trainer(run, resume=True, on_step=on_step)
    for group in trainer.optimizer.param_groups:
        group["eps"] = 1e-6  # AdamW makes full steps of gradients that are rounding errors alone, else
    start = trainer.step
    metrics = trainer.fit()
    found = {
        "start": start,
        "weights": trainer.result.state_dict(),
        "metrics": metrics,
        "sources": trainer.sources,
    }
    torch.save(found, f"{result}-{trainer.world.rank}.pt")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(*sys.argv[1:4], int(sys.argv[4]))
