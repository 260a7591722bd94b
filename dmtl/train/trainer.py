"""The training loop.

A step runs the initial network on the whole batch and the denoiser on the labelled (sample, task) pairs
alone, all tasks in one call per denoising step. Nothing in a step waits for the device; losses are read
where they are logged.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from dmtl.data.loader import Batch
from dmtl.devices import pick_device
from dmtl.diffusion import CounterNoise
from dmtl.errors import CheckpointError, ConfigError
from dmtl.files import write_text
from dmtl.models import DiffusionMTL, MultiTaskBaseline, load_state
from dmtl.train.checkpoint import load_checkpoint, save_checkpoint
from dmtl.train.config import RunConfig
from dmtl.train.ema import MovingAverage
from dmtl.train.evaluate import Metrics, evaluate, primary_metrics
from dmtl.train.log import RunLog
from dmtl.train.loss import labelled_rows, partial_label_loss
from dmtl.train.setup import (
    Data,
    evaluation_loader,
    learning_rate,
    model_for,
    open_data,
    optimizer_for,
    training_loader,
)
from dmtl.train.toml import write_config

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One run: `Trainer(config).run()` trains to the end and leaves model, metrics and log in `config.out`.

    Args:
        data: what `open_data` gives for this configuration, to share it between runs; default: opened here.
        resume: go on from the run's last checkpoint; without one the run starts at the beginning.
        on_step: called after every step with (step, steps, last logged loss); for progress bars.

    Raises:
        ConfigError: the run's folder holds a finished or other run, or a setting cannot work here.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        data: Data | None = None,
        resume: bool = False,
        on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    ):
        self.config, self.on_step = config, on_step
        self.out = Path(config.out)
        self.checkpoint = self.out / "checkpoints" / "last.pt"
        if not resume and (self.out / "log.jsonl").exists():
            raise ConfigError(f"{self.out} already holds a run; choose another out, or --resume")
        self.device = pick_device(config.device)
        torch.use_deterministic_algorithms(config.optim.deterministic)
        self.data = open_data(config.data, config.optim.task_weights) if data is None else data
        self.model = model_for(config, self.data.tasks).to(self.device, memory_format=torch.channels_last)
        self.optimizer = optimizer_for(config.optim, self.model)
        self.ema = MovingAverage(self.model, config.optim.ema) if config.optim.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "fp16")
        self.step, self.seconds, self._loss = 0, 0.0, float("nan")
        if resume and self.checkpoint.exists():
            self._restore()

    def run(self) -> Metrics:
        """Trains, evaluates, saves; returns the final metrics of the validation split."""
        config = self.config
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(config, self.out / "config.toml")
        self.data.labels.write_csv(self.out / "labels.csv")
        log = RunLog(self.out, resume_step=self.step, tensorboard=config.log.tensorboard)
        batches = training_loader(config, self.data, pin=self.device.type == "cuda").stream(self.step)
        metrics: Metrics = {}
        try:
            self.model.train()
            while self.step < config.optim.steps:
                started = time.perf_counter()
                rate = learning_rate(config.optim, self.step)
                parts = self._train_step(next(batches), rate)
                self.step += 1
                due = self.step % config.log.every == 0 or self.step == config.optim.steps
                values = {name: float(value) for name, value in parts.items()} if due else {}
                self.seconds += time.perf_counter() - started
                if due:
                    self._loss = values["loss"]
                    log.write(
                        "train",
                        self.step,
                        seconds=self.seconds,
                        lr=rate,
                        loss=values.pop("loss"),
                        **{f"loss/{name}": value for name, value in values.items()},
                    )
                self.on_step(self.step, config.optim.steps, self._loss)
                if self.step % config.log.eval_every == 0 and self.step < config.optim.steps:
                    log.write("eval", self.step, seconds=self.seconds, metrics=self.evaluate())
                if self.step % config.log.checkpoint_every == 0 or self.step == config.optim.steps:
                    self.save()
            metrics = self.evaluate()
            log.write("eval", self.step, seconds=self.seconds, metrics=metrics)
        finally:
            log.close()
        self.result.save_pretrained(self.out / "model")
        primary = primary_metrics(metrics, self.model.tasks)
        summary = {"step": self.step, "seconds": self.seconds, "metrics": metrics, "primary": primary}
        write_text(self.out / "metrics.json", json.dumps(summary, indent=2) + "\n")
        return metrics

    @property
    def result(self) -> DiffusionMTL | MultiTaskBaseline:
        """The model to evaluate and to keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.average

    def evaluate(self) -> Metrics:
        """Metrics of the current weights on the validation split."""
        return evaluate(
            self.result,
            evaluation_loader(self.data, workers=self.config.data.workers),
            initial=self._diffuses,
        )

    def save(self) -> None:
        """Writes the checkpoint from which the run goes on exactly."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": _identity(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.average.state_dict(),
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(self.checkpoint, state)

    @property
    def _diffuses(self) -> bool:
        return isinstance(self.model, DiffusionMTL)

    def _train_step(self, batch: Batch, rate: float) -> dict[str, torch.Tensor]:
        optim = self.config.optim
        batch = batch.to(self.device, non_blocking=True)
        noise = CounterNoise((optim.seed << 32) + self.step, batch.index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with self._autocast():
            image = batch.image.contiguous(memory_format=torch.channels_last)
            rows = labelled_rows(batch.present, self.device)
            denoises = self._diffuses and self.step >= optim.mtdnet_start * optim.steps
            prediction = (
                self.model(image, labelled=rows, noise=noise)
                if denoises
                else self.model.initial_prediction(image, labelled=rows)
            )
            loss, parts = partial_label_loss(
                prediction,
                batch.labels,
                batch.present,
                self.model.tasks,
                initial_weight=optim.initial_weight,
                final=denoises,
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if optim.clip:
            parts |= {
                name: torch.nn.utils.clip_grad_norm_(part.parameters(), optim.clip)
                for name, part in self._clipped.items()
            }
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.step)
        return {"loss": loss.detach(), **parts}

    @property
    def _clipped(self) -> dict[str, torch.nn.Module]:
        """What is clipped together: everything (published), or the two networks when no gradient runs
        between them."""
        if self._diffuses and self.model.config.detach_signal and self.model.config.detach_condition:
            return {"grad_norm": self.model.initial, "grad_norm/mtdnet": self.model.mtdnet}
        return {"grad_norm": self.model}

    def _autocast(self):
        precision = self.config.optim.precision
        return (
            torch.autocast(self.device.type, PRECISIONS[precision])
            if precision in PRECISIONS
            else nullcontext()
        )

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint)
        stored, ours = json.loads(state["config"]), json.loads(_identity(self.config))
        for section in ours:
            for key in ours[section]:
                if stored.get(section, {}).get(key) != ours[section][key]:
                    raise CheckpointError(
                        f"{self.checkpoint}: belongs to another configuration: {section}.{key} was "
                        f"{stored.get(section, {}).get(key)!r}, now {ours[section][key]!r}"
                    )
        load_state(self.model, state["model"], str(self.checkpoint))
        if self.ema is not None:
            load_state(self.ema.average, state["ema"], str(self.checkpoint))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]


def _identity(config: RunConfig) -> str:
    """The part of a configuration that decides the weights, as JSON."""
    values = dataclasses.asdict(config)
    for key in ("cache", "workers", "val_count"):
        values["data"].pop(key)
    return json.dumps({section: values[section] for section in ("data", "model", "optim")}, sort_keys=True)
