"""The contenders in training: our step, and those of the two baselines.

A step is forward, loss, backward, clipping and the optimiser, on a batch in memory. Before timing, the loss
and all gradients are compared with our fp32 step's, on the same noise.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmtl.data import Batch
from dmtl.diffusion import CounterNoise
from dmtl.errors import one_line
from dmtl.models import DiffusionMTL, MultiTaskBaseline
from dmtl.nn.precision import tf32
from dmtl.runtime.distributed import World
from dmtl.runtime.measure import seconds
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.config import ExecutionConfig, OptimConfig, RunConfig
from dmtl.train.optim import optimizer_for
from dmtl.train.presets import recipe
from dmtl.train.step import Step
from dmtl.train.weighting import make_weighting

from . import clock, contenders, memory
from .cases import Case, Noise, case_from, drawn_noise, tasks_of
from .expert_training import ExpertTraining
from .published import PublishedTraining
from .race import Turns

ALLOWED = {"fp32": (1e-2, 1e-4), "tf32": (0.1, 1e-3), "bf16": (0.5, 1e-2)}
"""Precision -> allowed relative distances of all gradients, and of the loss, from our fp32 step's. Gradients
through batch norms are small differences of large numbers. Distances from float64: in fp32 at 128x128 1.8e-3
for the published execution and 2.0e-3 for ours; in bf16 0.1 to 0.35 for the library's own composition. (From
random weights, the gradients of the recipe's encoder mean nothing in bf16: ours and the library's are 0.9 to
1.0 away.)"""
LABELS = ("one", "random", "all")
OPTIM = OptimConfig(optimizer="adam", lr=2e-5, weight_decay=0.0, warmup=0)
"""The published settings: Adam, gradients clipped at 10."""


@dataclass(frozen=True)
class TrainingCase:
    """One step. labels: "one" task of every image, taking turns; "random": at least one of every image, each
    other one with probability 1/2; "all"."""

    case: Case
    labels: str = "one"

    def batch(self) -> Batch:
        """Return normal pixels and plausible labels on the case's device, the same every time."""
        generator = torch.Generator().manual_seed(2)
        case = self.case
        tasks = {task.name: task for task in tasks_of(case)}
        present = self.present(list(tasks), generator)
        labels = {name: _label(task, case, generator).to(case.device) for name, task in tasks.items()}
        return Batch(
            ids=[str(i) for i in range(case.batch)],
            index=torch.arange(case.batch, device=case.device),
            image=case.image(),
            labels=labels,
            present=present,
            valid_size=[tuple(case.size)] * case.batch,
        )

    def present(self, tasks: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
        """Draw task -> bool [B]."""
        first = torch.arange(self.case.batch) % len(tasks)
        chance = {"one": 0.0, "random": 0.5, "all": 1.0}[self.labels]
        return {
            task: (first == i) | (torch.rand(self.case.batch, generator=generator) < chance)
            for i, task in enumerate(tasks)
        }

    def described(self) -> dict:
        """Describe the training case, for a row."""
        return self.case.described() | {"labels": self.labels}


def recipe_case(diffusion: str, device: str) -> Case:
    """Return a training batch of `dmtl train`'s default network with three tasks and ImageNet weights;
    `diffusion` is that of `ModelConfig`."""
    config = recipe()
    model = config.model
    options = dict(
        backbone=model.backbone, width=model.width, token_reduction=model.token_reduction, diffusion=diffusion
    )
    tasks = ("semseg", "depth", "normals")
    batch = config.optim.batch_size
    return Case(config.data.size, batch, device=device, options=options, all_tasks=tasks, pretrained=True)


def _label(task, case: Case, generator: torch.Generator) -> Tensor:
    shape = (case.batch, task.label_channels, *case.size)
    if task.label_names:
        return torch.randint(0, len(task.label_names), shape, generator=generator).float()
    if task.unit_length:
        return nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    return 10 * torch.rand(shape, generator=generator)


@dataclass
class Trainee:
    """A contender. loss(batch, noise): the scalar to differentiate, noise as `cases.Noise` (the rows of
    all images), None: drawn; ours draws its own. step(batch): a whole step."""

    name: str
    precision: str
    model: nn.Module
    loss: Callable[[Batch, Noise | None], Tensor]
    step: Callable[[Batch], object]
    how: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"

    def settings(self):
        """Return the context for its calls."""
        return tf32(self.precision == "tf32")

    def gradients(self, batch: Batch, noise: Noise | None) -> tuple[float, dict[str, Tensor]]:
        """Return the loss, and every parameter's gradient; unused parameters have none."""
        self.model.zero_grad(set_to_none=True)
        loss = self.loss(batch, noise)
        loss.backward()
        found = {n: p.grad.detach().cpu() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach()), found


def ours(case: Case, precision: str) -> Trainee:
    """Build the package's own step as a contender."""
    device = torch.device(case.device)
    optim = dataclasses.replace(OPTIM, precision=precision.replace("tf32", "fp32"))
    config = RunConfig(device=str(device), optim=optim, execution=ExecutionConfig())
    model = trained_model(case)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    weighting = make_weighting(optim, model.tasks).to(device)
    batch_loss = BatchLoss(model, weighting, optim)
    optimizer = optimizer_for(optim, model, extra=weighting.parameters())
    taken = Step(
        batch_loss, batch_loss, optimizer, config, rate=lambda step: optim.lr, total_steps=1 << 30,
        world=World(device=device),
    )  # fmt: skip

    def step(batch: Batch) -> None:
        taken(batch, 0)
        if taken.due:
            taken.read()

    def loss(batch: Batch, noise=None) -> Tensor:
        return batch_loss(batch, 0, taken.denoises(0))[0]

    return Trainee("dmtl", precision, model, loss, step, "Step")


def published(case: Case, precision: str) -> Trainee:
    """Build the published step: eager, NCHW, one labelled pair after another.

    Its optimiser is the fused one, like all contenders'.
    """
    model = trained_model(case)
    loss = PublishedTraining(model).loss
    return Trainee("published", precision, model, loss, _step(model, loss), "eager, NCHW, pair by pair")


def expert(case: Case, precision: str, modes: tuple[str, ...] = ("default",)) -> Trainee:
    """Build the step of a good engineer without custom kernels.

    channels_last, autocast, the pairs of a task in one batch and all pairs in the blocks, torch.compile if it
    is faster.
    """
    model = trained_model(case).to(memory_format=torch.channels_last)
    made = ExpertTraining(model, precision, modes)
    step = _step(model, made.loss)
    made.choose(TrainingCase(case).batch(), step)
    return Trainee("expert", precision, model, made.loss, step, made.how)


def _step(model: nn.Module, loss: Callable[[Batch], Tensor]) -> Callable[[Batch], None]:
    """Return a whole step with the published optimiser, fused."""
    optimizer = torch.optim.Adam(model.parameters(), lr=OPTIM.lr, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        optimizer.step()

    return step


def trained_model(case: Case) -> DiffusionMTL | MultiTaskBaseline:
    """Build the case's model on its device, in training mode."""
    return case.build().to(case.device).train()


def noise_of(model: DiffusionMTL | MultiTaskBaseline, batch: Batch) -> dict[str, Tensor]:
    """Return the noise of our step 0 for every task of every image: {task: [draws, B, C, h, w]}, {} for a
    baseline."""
    if not isinstance(model, DiffusionMTL):
        return {}
    source = CounterNoise(OPTIM.seed << 32, batch.index)
    draws = len(model.mtdnet.plan(batch.image.device).levels)
    return drawn_noise(model, batch.image, draws, source)


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the relative distance of all gradients in L2; inf if one is missing or superfluous."""
    present = {name for name, grad in found.items() if grad.any()}
    if present != {name for name, grad in expected.items() if grad.any()}:
        return float("inf")
    apart = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in present)
    return (apart / sum(float(expected[n].double().square().sum()) for n in present)) ** 0.5


def names(device: torch.device) -> list[tuple[str, str]]:
    """Return (contender, precision) of all contenders; bf16 on a CPU only if the processor has it."""
    served = ["fp32", *(["bf16"] if "bf16" in contenders.served(device) else [])]
    pairs = [(name, precision) for name in ("expert", "dmtl") for precision in served]
    return [("published", "fp32"), *pairs]


def make(case: Case, name: str, precision: str, modes: tuple[str, ...] = ("default",)) -> Trainee:
    """Build the contender of this name, with its own model. modes: how the expert's code may be compiled."""
    if name == "dmtl":
        return ours(case, precision)
    return published(case, precision) if name == "published" else expert(case, precision, modes)


class TrainingRace(Turns):
    """All contenders for one case, checked. A turn has at least three steps, as a training has many in a row.

    Args:
        wanted: (contender, precision), default `names`.
        options: for the baselines, such as `modes` of the expert's compiler.
    """

    def __init__(self, case: TrainingCase, wanted: Sequence[tuple[str, str]] | None = None, **options):
        device = torch.device(case.case.device)
        self.case, self.batch = case, case.batch()
        self.rows: list[dict] = []
        reference = ours(case.case, "fp32")
        with tf32(False):
            noise = noise_of(reference.model, self.batch)
            expected = reference.gradients(self.batch, None)
        del reference
        found = names(device) if wanted is None else wanted
        admitted = [self._admitted(name, precision, noise, expected, options) for name, precision in found]
        contenders = {contender.title: contender for contender in admitted if contender is not None}
        super().__init__(contenders, self._step, device, calls=3)

    def _admitted(self, name: str, precision: str, noise, expected, options) -> Trainee | None:
        """Return the contender if it computes the same gradients; otherwise its row says what is wrong."""
        row = {"contender": name, "precision": precision}
        self.rows.append(row)
        try:
            contender = make(self.case.case, name, precision, **options)
            with contender.settings():
                loss, gradients = contender.gradients(self.batch, noise)
        except RuntimeError as error:  # out of memory, a failing compiler
            row["error"] = f"{type(error).__name__}: {one_line(error)}"
            return None
        apart = difference(gradients, expected[1])
        row |= {"how": contender.how, "difference": apart, "loss": loss, "reference_loss": expected[0]}
        off, (allowed, allowed_off) = abs(loss / expected[0] - 1), ALLOWED[precision]
        if apart <= allowed and off <= allowed_off:
            return contender
        row["error"] = (
            f"gradients differ by {apart:.2e} ({allowed:g} are allowed), the loss by {off:.2e} "
            f"({allowed_off:g})"
        )
        return None

    def _step(self, contender: Trainee) -> None:
        contender.step(self.batch)

    def rest(self, contender: Trainee) -> None:
        contender.model.zero_grad(set_to_none=True)

    def result(self) -> list[dict]:
        """Return one row for each contender: times, pairs per second, and how many times faster it is than
        each baseline in each of its precisions ("times published fp32", ...)."""
        pairs = int(sum(mask.sum() for mask in self.batch.present.values()))
        against = {
            title: clock.ratios(self.times_s, title)
            for title, contender in self.contenders.items()
            if contender.name != "dmtl" and self.times_s[title]
        }
        rows = []
        for row in self.rows:
            title = f"{row['contender']} {row['precision']}"
            row = {"part": "training", **self.case.described(), "pairs": pairs} | row
            if times := self.times_s.get(title):
                row |= clock.quantiles_ms(times) | {"rounds": len(times)}
                row["pairs_per_s"] = pairs / statistics.median(times)
                row |= {f"times {name}": ratio[title] for name, ratio in against.items()}
            rows.append(row)
        return rows


def peak(case: TrainingCase, name: str, precision: str, **options) -> dict:
    """Return a row with the peak memory of three steps in a separate process."""
    facts = {"part": "training memory", "contender": name, "precision": precision} | case.described()
    work = {"case": dataclasses.asdict(case.case), "labels": case.labels, "name": name}
    work |= {"precision": precision, "options": options}
    return facts | memory.peak_of("benchmarks.training:measured", work)


def measured(case: dict, labels: str, name: str, precision: str, options: dict) -> dict:
    """Run three steps, the first of which creates the optimiser's state; return this process's peak."""
    training = TrainingCase(case_from(case), labels)
    contender, batch = make(training.case, name, precision, **options), training.batch()
    with contender.settings():
        for _ in range(3):
            contender.step(batch)
    return memory.peak_so_far(torch.device(training.case.device))


def loading(config: RunConfig, batches: int = 8) -> dict:
    """Time the loader: images per second of `batches` batches after a first one, without a cache."""
    from dmtl.train.setup import open_data, training_loader

    data = dataclasses.replace(config.data, cache=False, cache_dir=None)
    config = dataclasses.replace(config, data=data)
    stream = training_loader(config, open_data(data)).stream()
    next(stream)
    taken = seconds(lambda: [next(stream) for _ in range(batches)], torch.device("cpu"))
    images = batches * config.optim.batch_size
    facts = {"part": "loading", "root": data.root, "size": list(data.size), "workers": data.workers}
    return facts | {"batch": config.optim.batch_size, "images": images, "images_per_s": images / taken}
