"""Estimate the work, memory and time of a training run before it starts.

`plan` counts what follows from the configuration: data, labels, parameters, operations, steps, files.
`measure` runs a few real steps on the run's first batches in a separate process, whose peak memory it
reports. `forecast` combines both. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections import Counter

import numpy as np
import torch

from dmtl.data import LabelledImages
from dmtl.data.base import source_of
from dmtl.data.loading.loader import Loader
from dmtl.data.loading.wrappers import Cached, Subset
from dmtl.errors import ConfigError
from dmtl.models import DiffusionMTL, MultiTaskBaseline, create_model
from dmtl.models.work import count, parameters
from dmtl.runtime.devices import usable_cores
from dmtl.runtime.measure import seconds
from dmtl.runtime.memory import peak_rss_bytes
from dmtl.runtime.process import ProcessError, call_in_process
from dmtl.train.checkpoint import state_bytes
from dmtl.train.config import RunConfig
from dmtl.train.optim import freeze, total_steps
from dmtl.train.setup import Data, open_data, training_loader
from dmtl.train.toml import config_from_dict
from dmtl.train.weighting import make_weighting

LEAST_STEPS, MOST_STEPS, ENOUGH_S = (
    3,
    20,
    4.0,
)  # measured steps: minimum, maximum; stop after this many seconds
EVALUATED = 8  # images in a batch of the evaluation
LIMIT_S = 3600
FLOAT = 4  # bytes of a number in parameters and in the optimiser's moments


def plan(config: RunConfig) -> dict:
    """Return what can be known without running a step, in values that JSON can hold, with sizes in bytes.

    Opens the data set, and reads some labels for "notes".
    """
    data = open_data(config.data, config.optim.task_weights)
    loader = training_loader(config, data)
    model = _model(config, data)
    per_epoch, total = len(loader), total_steps(config.optim, len(loader))
    notes: list[str] = []
    data.describe(config.data, notes.append)
    pairs_SB = pairs_of_steps(loader)
    pairs = {task: float(n) for task, n in zip(loader.visible.tasks, pairs_SB.mean(0))}
    files = _files(config, model)
    return {
        "out": config.out,
        "notes": notes,
        "data": {
            "name": data.train.name,
            "train": len(data.train),
            "val": len(data.val),
            "labelled": int(loader.visible.matrix.any(1).sum()),
            "size": list(config.data.size),
            "labels": loader.visible.statistics(),
            "sources": _sources(data, loader),
        },
        "steps": {
            "total": total,
            "per_epoch": per_epoch,
            "epochs": total / per_epoch,
            "images": config.optim.batch_size,
            "pairs": pairs,
            "most_pairs": int(pairs_SB.sum(1).max()),
        },
        "parameters": parameters(model),
        "flops": work(config, model, pairs),
        "files": files,
        "evaluations": len({*range(config.log.eval_every, total, config.log.eval_every), total}),
    }


def forecast(facts: dict, config: RunConfig, measured: dict) -> dict:
    """Estimate memory and time of the whole run from `plan` and `measure`.

    Memory is the measured peak, plus the growth of the sample cache, plus the copy of the state that is
    written to a checkpoint while steps continue. The time of a step is that of its computation, plus the wait
    for its batch if no worker prepares it in the meantime. The first epoch reads files, later ones use the
    cache. Workers with a memory cache start by reading all samples.
    """
    steps, data = facts["steps"], facts["data"]
    images = steps["images"]
    first, later = (images * measured[key] for key in ("read_s", "again_s"))
    if not config.data.cache and config.data.cache_dir is None:
        later = first
    workers = min(config.data.workers, measured["cores"])
    compute = statistics.median(measured["step_s"])
    step = [max(compute, load / workers) if workers else compute + load for load in (first, later)]
    reading = min(steps["total"], steps["per_epoch"])
    start = 0.0
    if workers and config.data.cache:
        start, reading = data["labelled"] * measured["read_s"] / workers, 0
    training = reading * step[0] + (steps["total"] - reading) * step[1]
    evaluation = facts["evaluations"] * data["val"] * measured["evaluation_s"]
    cache = 0
    if config.data.cache:
        splits = (("labelled", "train_bytes"), ("val", "val_bytes"))
        cache = round(sum(min(measured["cache_limit"], data[n] * measured[b]) for n, b in splits))
    copy = facts["files"]["checkpoint"] if config.log.checkpoint_every < steps["total"] else 0
    return {
        "compute_s": compute,
        "load_first_s": first,
        "load_s": later,
        "start_s": start,
        "step_s": training / steps["total"],
        "evaluation_s": evaluation,
        "hours": (start + training + evaluation) / 3600,
        "cache_bytes": cache,
        "memory_bytes": measured["peak_bytes"] + cache - measured["held_bytes"] + copy,
        "device_bytes": measured["device_bytes"],
    }


# counted


def _sources(data: Data, loader: Loader) -> list[dict]:
    """Count the images and visible labels of each source; [] if the data set has no sources."""
    names = data.train.sources
    order = loader.order(0)[: len(loader) * loader.batch_size]
    drawn = Counter(source_of(data.train.ids[index]) for index in order.tolist()) if names else {}
    val = Counter(map(source_of, data.val.ids))
    return [
        {
            "name": name,
            "train": len(table),
            "val": val[name],
            "in_step": drawn[name] / len(loader),
            "labels": {task: n for task, n in table.statistics()["per_task"].items() if n},
        }
        for name, table in loader.visible.of_sources(names).items()
    ]


def pairs_of_steps(loader: Loader) -> np.ndarray:
    """Return the number of labelled images of every task in every step of the first epoch, int [steps,
    tasks]."""
    size = loader.batch_size
    order = loader.order(0)[: len(loader) * size]
    return np.add.reduceat(loader.visible.matrix[order].astype(int), np.arange(0, len(order), size))


def work(config: RunConfig, model: DiffusionMTL | MultiTaskBaseline, pairs: dict[str, float]) -> dict:
    """Count the floating-point operations of the forward pass of an average step, by stage.

    A multiply-add counts as two. Only convolutions and matrix products count, and MTDNet and the skip decoder
    only for labelled pairs.
    """
    images, (height, width) = config.optim.batch_size, config.data.size
    forward = dict.fromkeys(("initial", "condition", "chain"), 0.0)
    if model.config.output_stride == 4:
        forward["skip"] = 0.0
    whole = count(model.config, (height, width), published=True)
    for part in whole:
        if part.stage in ("initial", "condition") or part.layer == "skip":  # once for all tasks
            forward[part.stage] += images * part.flops
    if all(part.stage not in ("chain", "skip") for part in whole):
        return forward
    for task, number in pairs.items():
        for part in count(model.config, (height, width), published=True, tasks=[task]):
            if part.stage in ("chain", "skip") and part.layer != "skip":
                forward[part.stage] += number * part.flops
    return forward


def _model(config: RunConfig, data: Data) -> DiffusionMTL | MultiTaskBaseline:
    """Build the run's model without storage, with the same frozen parts."""
    with torch.device("meta"):
        model = create_model(config.model, data.tasks)
    freeze(config.optim, model)
    return model


def _files(config: RunConfig, model: DiffusionMTL | MultiTaskBaseline) -> dict[str, int]:
    """Return the bytes of a checkpoint, of a model on disk, and of all files that a run keeps.

    These are its last checkpoints and one that is being written, and the best and the last model.
    """
    weights = state_bytes(model.state_dict())
    weighting = make_weighting(config.optim, model.tasks)
    trained = [p for p in (*model.parameters(), *weighting.parameters()) if p.requires_grad]
    moments = sum(FLOAT * (2 * p.numel() + 1) for p in trained)
    checkpoint = weights * (2 if config.optim.ema else 1) + moments + state_bytes(weighting.state_dict())
    return {
        "checkpoint": checkpoint,
        "model": weights,
        "kept": config.log.keep,
        "disk": (config.log.keep + 1) * checkpoint + 2 * weights,
    }


# measured


def measure(config: RunConfig, threads: int | None = None) -> dict:
    """Measure a few steps and an evaluation of one batch in a separate process.

    Returns:
        A dictionary::

            step_s        seconds of each measured step, without the wait for its batch
            read_s        seconds to read and transform an image for the first time
            again_s       seconds to read and transform an image later
            evaluation_s  seconds to evaluate an image, including reading
            peak_bytes    largest resident set of the process
            device_bytes  largest allocation on a GPU, otherwise 0
            held_bytes    bytes of the samples in the memory cache at the end
            train_bytes   bytes of a training sample in the cache
            val_bytes     bytes of a validation sample in the cache
            cache_limit   bytes that a split may cache
            cores         cores that this process may use

    Raises:
        ConfigError: the steps failed; the message is that of their error.
    """
    try:
        return call_in_process(
            "dmtl.train.plan:measured",
            {"values": dataclasses.asdict(config)},
            limit_s=LIMIT_S,
            threads=threads,
            without=("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        )
    except ProcessError as error:
        if error.signal is None:
            raise ConfigError(f"the measured steps failed: {error}") from None
        raise ConfigError(
            f"the measured steps were killed by signal {error.signal}, most likely for lack of memory; "
            "lower optim.batch_size or data.size, or set execution.micro_batch"
        ) from None


def measured(values: dict) -> dict:
    """Measure the result of `measure` in this process.

    `values` is the run's configuration as a dictionary.
    """
    from dmtl.train.trainer import Trainer

    config = config_from_dict(values)
    optim = dataclasses.replace(config.optim, mtdnet_start=0.0)
    kept = config.data.cache or config.data.cache_dir is not None
    alone = dataclasses.replace(config.data, cache=kept, cache_dir=None, workers=0)
    config = dataclasses.replace(config, out=os.devnull, optim=optim, data=alone)
    data = open_data(config.data, config.optim.task_weights)
    val = _first(data.val, EVALUATED)
    trainer = Trainer(config, data=dataclasses.replace(data, val=val))
    loader = trainer.loader
    took, batches = _timed_batches(loader, LEAST_STEPS)
    train_bytes = _held(data.train) / len({int(i) for batch in batches for i in batch.index})
    again, _ = _timed_batches(loader, LEAST_STEPS)
    steps: list[float] = []
    for number in range(1 + MOST_STEPS):  # the first one is a warm-up
        batch = batches[number % len(batches)]
        steps.append(seconds(lambda: trainer.take(batch), trainer.device))  # noqa: B023
        if number >= LEAST_STEPS and sum(steps[1:]) > ENOUGH_S:
            break
    pairs = pairs_of_steps(loader).sum(1)
    if pairs.max() > pairs[:LEAST_STEPS].max():  # the step with most labelled pairs needs the most memory
        trainer.take(next(loader.stream(int(pairs.argmax()))))
    evaluation = [seconds(trainer.evaluate, trainer.device) for _ in range(2)]
    return {
        "step_s": steps[1:],
        "read_s": took / (LEAST_STEPS * loader.batch_size),
        "again_s": again / (LEAST_STEPS * loader.batch_size),
        "evaluation_s": min(evaluation) / len(val),
        "peak_bytes": peak_rss_bytes(),
        "device_bytes": torch.cuda.max_memory_reserved() if trainer.device.type == "cuda" else 0,
        "device": str(trainer.device),
        "held_bytes": _held(data.train) + _held(val),
        "train_bytes": train_bytes,
        "val_bytes": _held(val) / len(val),
        "cache_limit": data.train.limit_bytes if isinstance(data.train, Cached) else 0,
        "cores": usable_cores(),
    }


def _timed_batches(loader: Loader, number: int) -> tuple[float, list]:
    """Read the first batches; return the seconds that this took, and the batches."""
    begin = time.perf_counter()
    batches = [batch for _, batch in zip(range(number), loader.stream(), strict=False)]
    return time.perf_counter() - begin, batches


def _first(dataset: LabelledImages, number: int) -> LabelledImages:
    """Return a data set of the first images, cached in memory if `dataset` is."""
    images = range(min(number, len(dataset)))
    if isinstance(dataset, Cached):
        return Cached(Subset(dataset.dataset, images))
    return Subset(dataset, images)


def _held(dataset: LabelledImages) -> int:
    """Return the bytes of the samples in the memory cache."""
    return dataset.used_bytes if isinstance(dataset, Cached) else 0
