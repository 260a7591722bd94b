"""What a process of a distributed test does: `worker.py JOB OUT IMAGES [...]`. Its result is the file
OUT/<JOB>-<processes>-<rank>.pt. Also imported, to do the same in one process.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from dmtl.data import eval_transform, make_loader, open_dataset
from dmtl.data.loading.loader import Batch
from dmtl.engine.engine import Engine
from dmtl.evaluation.scoring import Boundaries, Metrics, score
from dmtl.metrics.boundary import Boundary
from dmtl.models import ModelConfig, create_model
from dmtl.runtime.distributed import World, connect
from dmtl.tasks import make_task
from dmtl.train import distributed
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.config import DataConfig, ExecutionConfig, LogConfig, OptimConfig, RunConfig
from dmtl.train.ema import MovingAverage
from dmtl.train.optim import freeze, optimizer_for, set_train
from dmtl.train.setup import model_for, open_data, training_loader
from dmtl.train.step import Step
from dmtl.train.trainer import Trainer
from dmtl.train.weighting import make_weighting

STEPS = 20
RUNS = {  # of the model, of the optimiser
    "plain": ({}, {}),
    "joined": (
        dict(detach_condition=False, detach_signal=False),
        dict(weighting="uncertainty", mtdnet_start=0.3, optimizer="adam", clip=0.5, ema=0.9),
    ),
    "prediction": (dict(diffusion="prediction"), dict(freeze=["initial.backbone"])),
    "mtpsl": (dict(diffusion="none"), dict(objectives={"mtpsl": 2.0}, optimizer="adam")),
}
EXECUTIONS = {
    "ddp": {},
    "ddp, one image at a time": dict(micro_batch=1),
    "fsdp": dict(parallel="fsdp"),
    "fsdp, one image at a time": dict(parallel="fsdp", micro_batch=1),
}


def config_for(images: Path, out: Path, *, model={}, optim={}, execution={}, log={}) -> RunConfig:
    return RunConfig(
        out=str(out),
        device="cpu",
        data=DataConfig(root=str(images), size=(32, 32), labels="random-labels", scale=(0.8, 1.2)),
        model=ModelConfig(**(dict(width=16, heads=2, backbone_width=4, blocks=1, decoder_blocks=1) | model)),
        optim=OptimConfig(**(dict(steps=STEPS, batch_size=4, warmup=2, seed=3, freeze_bn=True) | optim)),
        execution=ExecutionConfig(**execution),
        log=LogConfig(**(dict(every=1, eval_every=4, checkpoint_every=2) | log)),
    )


def uneven(batch: Batch, step: int) -> Batch:
    """The batch of all processes with labels hidden: of the images of the first process, of one task
    everywhere, of all but one image, or of none, by turns. Some steps claim every label, of which those that
    are not visible say nothing."""
    present = {task: on.clone() for task, on in batch.present.items()}
    if step % 4 == 1:
        for on in present.values():
            on[:2] = False
        present["heat"][3] = True
    elif step % 4 == 2:
        present["edge"][:] = False
        present["semseg"][0] = True
    elif step % 4 == 3:
        for on in present.values():
            on[1:] = False
        present["edge"][0] = True
    elif step % 8 == 4:
        for on in present.values():
            on[:] = True
    labelled = {task: int(on.sum()) for task, on in present.items()}
    return dataclasses.replace(batch, present=present, labelled=labelled, total=len(batch))


def share(batch: Batch, world: World) -> Batch:
    """This process's rows, as the loader cuts them."""
    rows = torch.arange(len(batch)).tensor_split(world.size)[world.rank]
    keep = rows.tolist()
    return dataclasses.replace(
        batch,
        ids=[batch.ids[i] for i in keep],
        index=batch.index[rows],
        image=batch.image[rows],
        labels={task: label[rows] for task, label in batch.labels.items()},
        present={task: on[rows] for task, on in batch.present.items()},
        valid_size=[batch.valid_size[i] for i in keep],
    )


def twenty_steps(config: RunConfig, world: World) -> dict[str, dict]:
    """Weights, moments and moving average after the steps, whole, on every process."""
    data = open_data(config.data)
    model = model_for(config, data.tasks)
    freeze(config.optim, model)
    set_train(model, config.optim)
    weighting = make_weighting(config.optim, model.tasks)
    batch_loss = BatchLoss(model, weighting, config.optim)
    module = distributed.wrap(batch_loss, config.execution, world)
    ema = MovingAverage(model, config.optim.ema) if config.optim.ema else None
    optimizer = optimizer_for(
        config.optim, model, extra=weighting.parameters(), objectives=batch_loss.objectives.parameters()
    )
    for group in optimizer.param_groups:
        group["eps"] = 1e-6  # AdamW makes full steps of gradients that are rounding errors alone, else
    step = Step(batch_loss, module, optimizer, config, rate=lambda n: 1e-3, total_steps=STEPS, world=world)
    batches = training_loader(config, data).stream()
    for number in range(STEPS):
        step(share(uneven(next(batches), number), world), number)
        if ema is not None:
            ema.update(number)
    state = {
        "weights": model.state_dict(),
        "weighting": weighting.state_dict(),
        "objectives": batch_loss.objectives.state_dict(),
        "ema": {} if ema is None else ema.average.state_dict(),
        "moments": {
            f"{place}/{name}": value
            for place, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        },
    }
    return {**distributed.full_tensors(state), "skipped": step.read().skipped}


def all_steps(
    images: Path, out: Path, world: World, runs: Iterable[str] = RUNS, executions: Iterable[str] = EXECUTIONS
) -> dict[tuple[str, str], dict]:
    """Every run in every execution; one process has but one."""
    found = {}
    for run in runs:
        for name in executions if world.size > 1 else ["alone"]:
            model, optim = RUNS[run]
            config = config_for(images, out, model=model, optim=optim, execution=EXECUTIONS.get(name, {}))
            found[run, name] = twenty_steps(config, world)
    return found


def all_evaluations(images: Path, out: Path, world: World) -> dict[str, Metrics]:
    """Metrics of a model, of an engine with two draws, of fewer batches than processes, and of a list."""
    data = open_dataset(images, "train")
    torch.manual_seed(0)
    config = config_for(images, out).model
    specs = [task.spec() for task in data.tasks.values()]
    model = create_model(dataclasses.replace(config, tasks=specs, beta_end=0.2))

    def loader(size: int):
        return make_loader(data, None, eval_transform(), batch_size=size, shuffle=False)

    return {
        "model": score(model, loader(1), initial=True, world=world),
        "engine": score(Engine(model, samples=2), loader(2), world=world),
        "one batch": score(model, loader(8), world=world),
        "a list": score(model, list(loader(3)), tasks=["heat", "edge"], world=world),
        "boundaries": score(
            model,
            loader(1),
            tasks={"edge": make_task("edge")},
            boundaries=Boundaries(
                lambda ignore: Boundary("raw", 0.05, ignore=ignore),
                lambda index, task: data.boundaries(index),
            ),
            world=world,
        ),
    }


def train(images: Path, out: Path, parallel: str, kill_after: int) -> dict:
    """A run of eight steps that goes on from its last checkpoint, if there is one. The last process kills
    itself after step `kill_after`, unless it has done so before."""
    config = config_for(
        images,
        out,
        optim=dict(steps=8, ema=0.9),
        execution=dict(parallel=parallel, micro_batch=1),
        log=dict(keep=100),
    )

    def on_step(step: int, steps: int, loss: float) -> None:
        mark = out / "killed"
        if step == kill_after and trainer.world.rank == trainer.world.size - 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = Trainer(config, resume=True, on_step=on_step)
    start = trainer.step
    metrics = trainer.fit()
    return {"start": start, "metrics": metrics, "weights": distributed.full_copy(trainer.result).state_dict()}


def main(job: str, out: Path, images: Path, *rest: str) -> None:
    faulthandler.dump_traceback_later(1800, exit=True)  # where it hangs, if it does
    torch.set_num_threads(1)
    world = connect("cpu")
    if job == "steps":
        found = all_steps(images, out, world)
    elif job == "joined":
        found = all_steps(
            images, out, world, runs=["joined", "mtpsl"], executions=["ddp, one image at a time"]
        )
    elif job == "evaluate":
        found = all_evaluations(images, out, world)
    else:
        found = train(images, Path(rest[0]), rest[1], int(rest[2]))
    torch.save(found, out / f"{job}-{world.size}-{world.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
