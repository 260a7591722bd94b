"""Create the data, labels and model of a run from its configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmtl.data import (
    DATASETS,
    Cached,
    DiskCached,
    LabelledImages,
    LabelMatrix,
    Resized,
    eval_transform,
    made_to_order,
    make_loader,
    open_dataset,
    open_sources,
    train_transform,
)
from dmtl.data.benchmarks.detect import recognised
from dmtl.data.labels.choose import GENERATED, choose_labels
from dmtl.data.loading.loader import Loader
from dmtl.errors import ConfigError
from dmtl.models import (
    DiffusionMTL,
    MultiTaskBaseline,
    create_model,
    how_to_get,
    load_backbone,
    load_pretrained,
    pretrained_source,
)
from dmtl.models.initial import PAD_MULTIPLE
from dmtl.nn.precision import has_bf16
from dmtl.runtime.distributed import World
from dmtl.tasks import Task, task_from_spec
from dmtl.train.config import DataConfig, RunConfig
from dmtl.train.label_check import label_notes, refuse_unlabelled


@dataclass(frozen=True)
class Data:
    """The two splits and the labels visible to training."""

    train: LabelledImages
    val: LabelledImages
    labels: LabelMatrix
    tasks: dict[str, Task]

    def describe(self, config: DataConfig, say: Callable[[str], object]) -> None:
        """Report hidden labels and label problems before the first step (`dmtl.train.label_check`).

        Raises:
            ConfigError: a task has only ignored pixels, or ignored and negative ones.
            DataError: one of the files that were checked cannot be read, and `data.skip_corrupt` is 0.
        """
        if config.labels in GENERATED:
            visible, every = (int(table.matrix.sum()) for table in (self.labels, self.train.available()))
            if visible < every:
                how = f'(data.labels = "{config.labels}"); "full" uses all'
                say(f"{visible:,} of {every:,} labels visible {how}")
        for note in label_notes(self.train, self.val, self.labels, skip_corrupt=config.skip_corrupt > 0):
            say(note)

    def definition(self) -> list[list]:
        """Return what the labels mean: [task, options] in the order of the tasks, in values that JSON can
        hold."""
        return json.loads(json.dumps([[task, self.train.definition(task)] for task in self.tasks]))


def open_data(config: DataConfig, task_weights: dict[str, float] | None = None) -> Data:
    """Open the data set and decide which labels are visible.

    Raises:
        ConfigError: a setting is invalid, or a task has no visible label.
        DataError: the data set violates its format.
    """
    for root in [config.root] if config.root else [source.root for source in config.sources]:
        _check_root(root)
    train, val = (open_split(config, split, config.tasks, config.resize) for split in ("train", "val"))
    weights = task_weights or {}
    tasks = {
        name: replace(task, weight=weights[name]) if name in weights else task
        for name, task in train.tasks.items()
    }
    unused = [name for name in weights if name not in tasks]
    if unused:  # allowed for tasks that data.tasks leaves out
        every = open_split(config, "train").tasks
        for name in unused:
            if name not in every:
                raise ConfigError(
                    f"optim.task_weights.{name} is not a task of {train.name} (tasks: {', '.join(every)})"
                )
    labels = choose_labels(
        train, config.labels, config.label_seed, config.label_tasks, _deciding(config, train)
    )
    refuse_unlabelled(train, labels)
    if config.cache_dir is not None:
        train, val = DiskCached(train, config.cache_dir), DiskCached(val, config.cache_dir)
    if config.cache:
        train, val = Cached(train), Cached(val)
    return Data(train, val, labels, tasks)


def open_split(
    config: DataConfig, split: str, tasks: Iterable[str] | None = None, resize: bool = False
) -> LabelledImages:
    """Open a split of `data.root` or `data.sources`.

    Args:
        config: the section `data`.
        split: "train" or "val".
        tasks: names of the tasks; None: all.
        resize: resize images to `data.size`; rendered images always have that size.
    """
    size = (config.size[0], config.size[1])
    made = config.train_count if split == "train" else config.val_count
    if config.sources:
        joined = open_sources(config.sources, split, tasks=tasks, size=size, made=made)
        return Resized(joined, size) if resize else joined
    rendered = made_to_order(config.root)
    return open_dataset(
        config.root,
        split,
        tasks=tasks,
        size=size if rendered or resize else None,
        count=made if rendered else None,
    )


def _deciding(config: DataConfig, train: LabelledImages) -> LabelledImages:
    """Return `train` with the tasks over which a generated split is drawn."""
    if config.labels not in GENERATED or (config.tasks is None and config.label_tasks is None):
        return train
    among = train.tasks if config.label_tasks is None else config.label_tasks
    left_out = [task for task in train.tasks if task not in among]
    if left_out:
        raise ConfigError(f"data.label_tasks must include data.tasks, got no {', '.join(left_out)}")
    return open_split(config, train.split, config.label_tasks)


def training_loader(config: RunConfig, data: Data, pin: bool = False, world: World | None = None) -> Loader:
    """Return a loader of augmented training batches with visible labels: this process's share of each
    batch."""
    world = World() if world is None else world
    if config.optim.batch_size < world.size:
        raise ConfigError(
            f"optim.batch_size must be at least the number of processes, {world.size}, "
            f"got {config.optim.batch_size}"
        )
    uneven = config.optim.batch_size % world.size or config.data.skip_corrupt
    if world.size > 1 and config.execution.sync_bn and config.execution.micro_batch and uneven:
        raise ConfigError(
            "execution.sync_bn with execution.micro_batch needs equally many images in each process: set "
            f"optim.batch_size to a multiple of {world.size} and data.skip_corrupt to 0, "
            f"got {config.optim.batch_size} and {config.data.skip_corrupt}"
        )
    c = config.data
    transform = train_transform(tuple(c.size), scale=tuple(c.scale), flip=c.flip, photometric=c.photometric)
    return make_loader(
        data.train,
        data.labels,
        transform,
        batch_size=config.optim.batch_size,
        seed=config.optim.seed,
        workers=c.workers,
        pin=pin,
        rank=world.rank,
        world=world.size,
        balance=c.balance,
        skip_corrupt=c.skip_corrupt,
    )


def evaluation_loader(data: Data, workers: int = 0) -> Loader:
    """Return a loader of the validation split with all its labels, in order."""
    return make_loader(data.val, None, eval_transform(), batch_size=8, shuffle=False, workers=workers)


def model_for(
    config: RunConfig, tasks: dict[str, Task], *, weights: bool = True
) -> DiffusionMTL | MultiTaskBaseline:
    """Build a fresh model for these tasks; its random weights depend only on `optim.seed`.

    Args:
        config: the configuration of the run.
        tasks: the tasks by name.
        weights: load the encoder's weights as `optim.backbone_weights` says, unless `optim.weights` will
            replace them. False: leave them random, because a checkpoint will replace them.

    Raises:
        ConfigError: the tasks differ from those of the data, or the encoder's weights are not available.
    """
    if config.model.tasks and {s["name"] for s in config.model.tasks} != set(tasks):
        raise ConfigError(
            f"model.tasks must be the tasks of the data ({', '.join(tasks)}), "
            f"got {', '.join(s['name'] for s in config.model.tasks)}"
        )
    for spec in config.model.tasks:
        mine, theirs = task_from_spec(spec).meaning(), tasks[spec["name"]].meaning()
        if mine != theirs:
            raise ConfigError(f"model.tasks: {spec['name']} must be as in the data ({theirs}), got {mine}")
    size = config.model.image_size
    if size is None and (config.data.resize or made_to_order(config.data.root)):
        size = config.data.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.optim.seed)
        model = create_model(config.model, tasks, image_size=size)
    if weights and not config.optim.weights:
        _load_encoder(model.initial.backbone, config)
    return model


def hints(config: RunConfig, device: torch.device, weights: bool) -> Iterator[str]:
    """Yield warnings about valid settings that cost accuracy or time on this device.

    Args:
        config: the configuration of the run.
        device: device of the run.
        weights: whether the encoder's weights are loaded, and not replaced by those of a checkpoint.
    """
    name = config.model.backbone
    starts = weights and not config.optim.weights
    if starts and config.optim.backbone_weights == "auto" and pretrained_source(name) is None:
        yield (
            f"the encoder {name} starts from random weights, which costs much accuracy on small data sets; "
            f"for its ImageNet weights: {how_to_get(name)} (optim.backbone_weights)"
        )
    if config.optim.precision == "bf16" and not has_bf16(device):
        yield (
            f"optim.precision: this {device.type} has no instructions for bf16, so a step takes several "
            'times as long as with "fp32" or "auto"'
        )


def check_batch_norms(config: RunConfig, model: nn.Module, world: World) -> None:
    """Check that batch norms see more than one value per channel, which would have no variance.

    Raises:
        ConfigError: the encoder's deepest map has one pixel and a batch norm sees one image; the message
            names the settings that cause this.
    """
    pixels = math.prod(math.ceil(side / PAD_MULTIPLE) for side in config.data.size)
    batch, micro = config.optim.batch_size, config.execution.micro_batch
    images = {batch // world.size, math.ceil(batch / world.size)}
    parts = {part for n in images for part in (min(micro or n, n), n % micro if micro else 0) if part}
    together = world.size > 1 and config.execution.sync_bn
    trained = any(isinstance(m, _BatchNorm) and m.training for m in model.modules())
    if pixels == 1 and 1 in parts and trained and not together:
        raise ConfigError(
            f"data.size = {list(config.data.size)} leaves one pixel of the encoder's deepest map, and batch "
            "norms cannot be trained on one image of it (optim.batch_size, execution.micro_batch, images of "
            f"a process): use crops larger than {PAD_MULTIPLE}, two images or more, or optim.freeze_bn"
        )


def _load_encoder(backbone: nn.Module, config: RunConfig) -> None:
    weights, name = config.optim.backbone_weights, config.model.backbone
    if not weights or (weights == "auto" and pretrained_source(name) is None):
        return
    if weights in ("auto", "imagenet"):
        load_pretrained(backbone, name)
        return
    if not Path(weights).is_file():
        raise ConfigError(
            f"optim.backbone_weights: {weights}: no such file, expected an encoder's weights (.pth or "
            '.safetensors), "imagenet" for the published ones, or "" to start from random ones'
        )
    load_backbone(backbone, weights)


def _check_root(root: str) -> None:
    """Raise ConfigError if `root` is a configuration, or a distributed benchmark.

    The labels of a distributed benchmark would have to be recomputed in every epoch.
    """
    folder = Path(root)
    if folder.suffix == ".toml":
        raise ConfigError(
            f"data.root is the configuration {root}, expected a data set; pass a configuration as the first "
            "argument CONFIG"
        )
    if root in DATASETS or not folder.is_dir() or (folder / "dataset.yaml").exists():
        return
    if formats := recognised(folder):
        raise ConfigError(
            "data.root must be 'scenes' or a folder with dataset.yaml, got "
            f"{root} ({formats[0]} as distributed): `dmtl data convert {root} OUT` writes such a folder"
        )
