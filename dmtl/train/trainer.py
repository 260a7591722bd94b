"""The training loop: steps, logging, evaluation, checkpoints, stopping and resuming.

A run depends only on its configuration: order, augmentation and noise follow from (seed, step). So a
checkpoint needs only weights, optimiser and a few numbers, and a run that was killed at any point ends with
the same bits as one that was not.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from dmtl.data.labels.matrix import LabelMatrix
from dmtl.data.loading.loader import Batch
from dmtl.errors import CheckpointError, ConfigError, WorkerError
from dmtl.evaluation.baseline import read_reference
from dmtl.evaluation.scoring import Metrics, primary_metrics, score
from dmtl.models import DiffusionMTL, MultiTaskBaseline, load_state
from dmtl.runtime.distributed import any_rank, barrier, connect, gather, total
from dmtl.runtime.files import write_json
from dmtl.train import distributed
from dmtl.train.batch_loss import BatchLoss
from dmtl.train.best import Best
from dmtl.train.checkpoint import Checkpoints
from dmtl.train.config import RunConfig
from dmtl.train.ema import MovingAverage
from dmtl.train.identity import identity, meaning_changed, what_changed
from dmtl.train.log import RunLog
from dmtl.train.optim import freeze, optimizer_for, schedule, set_train, total_steps
from dmtl.train.profiling import Profile
from dmtl.train.setup import (
    Data,
    check_batch_norms,
    evaluation_loader,
    hints,
    model_for,
    open_data,
    training_loader,
)
from dmtl.train.signals import Interrupted, RunStopped, StopRequest
from dmtl.train.start import start_from
from dmtl.train.step import Report, Step
from dmtl.train.toml import as_config, write_config
from dmtl.train.weighting import make_weighting


class Trainer:
    """One run: `Trainer(config).fit()` trains to the end and leaves models, metrics and log in `config.out`.

    Args:
        config: a `RunConfig`, the path of a TOML file, or nested tables as in such a file.
        data: the result of `open_data` for this configuration, to share between runs; default: opened here.
        resume: continue from the run's last intact checkpoint; without one, start at the beginning.
        on_step: called after every step with (step, steps, last logged loss); for progress bars.
        on_eval: called after every evaluation with (step, steps, metrics).
        say: called with one line for the user: poor labels, corrupt checkpoints, skipped steps.
        profile: also write a profile of three steps to `OUT/profile`.

    With torchrun, every process creates a Trainer and all run together; the first one writes.

    Raises:
        ConfigError: the run's folder has a finished or another run, or a setting is invalid here.
        CheckpointError: no checkpoint is intact, or it belongs to another configuration.
    """

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | str | os.PathLike,
        *,
        data: Data | None = None,
        resume: bool = False,
        on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
        on_eval: Callable[[int, int, Metrics], None] = lambda step, steps, metrics: None,
        say: Callable[[str], object] = lambda text: None,
        profile: bool = False,
    ):
        config = as_config(config)
        self.config, self.profile = config, profile
        self.on_step, self.on_eval = on_step, on_eval
        self.out = Path(config.out)
        traces = [*self.out.glob("log.jsonl"), *self.out.glob("checkpoints/step-*.pt")]
        if traces and not resume:
            raise ConfigError(f"{self.out} already holds a run; choose another out, or resume it")
        self.world = connect(config.device)
        self.device = self.world.device
        self.say = say if self.world.main else lambda text: None
        torch.use_deterministic_algorithms(config.optim.deterministic)
        self.data = open_data(config.data, config.optim.task_weights) if data is None else data
        self.data.describe(config.data, self.say)
        self.loader = training_loader(config, self.data, self.device.type == "cuda", self.world)
        self.steps_per_epoch = len(self.loader)
        self.steps = total_steps(config.optim, self.steps_per_epoch)
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.log.keep)
        state = self.checkpoints.latest(self.say) if resume else None
        self._build(weights=state is None)
        self.best = Best(self.model.tasks, read_reference(config.log.baseline))
        self.step, self.seconds, self.waited, self._loss = 0, 0.0, 0.0, float("nan")
        self._skipped_steps = self._skipped_samples = 0
        self._final: Metrics = {}  # metrics after the last step
        self.sources: dict[str, Metrics] = {}  # by source of the data, of the last evaluation
        if state is not None:
            self._restore(state)

    def _build(self, weights: bool) -> None:
        """Build model, moving average, the batch loss wrapped for all processes, optimiser and step.

        weights: load the configured weights of the encoder, which a checkpoint would replace.
        """
        config, device = self.config, self.device
        self.model = model_for(config, self.data.tasks, weights=weights).to(device)
        if weights and config.optim.weights:
            self.say(start_from(self.model, config.optim.weights, config.optim.freeze))
        for hint in hints(config, device, weights):
            self.say(hint)
        if device.type == "cuda":  # a CPU's library reorders weights itself, and its optimiser would copy
            # torch's stubs do not know this call
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        freeze(config.optim, self.model)
        set_train(self.model, config.optim)
        check_batch_norms(config, self.model, self.world)
        if isinstance(self.model, DiffusionMTL):
            self.model.mtdnet.recompute = config.execution.recompute
        if config.execution.compile:  # parts whose shapes and modes do not depend on the batch's labels
            for part in (self.model.initial.backbone, *self.model.initial.decoders.values()):
                part.compile()
        self.weighting = make_weighting(config.optim, self.model.tasks).to(device)
        batch_loss = BatchLoss(self.model, self.weighting, config.optim)
        self.objectives = batch_loss.objectives
        module = distributed.wrap(batch_loss, config.execution, self.world)
        self.ema = MovingAverage(self.model, config.optim.ema) if config.optim.ema else None
        others = {"extra": self.weighting.parameters(), "objectives": self.objectives.parameters()}
        self.optimizer = optimizer_for(config.optim, self.model, **others)
        factor = schedule(config.optim, self.steps_per_epoch)
        self._step = Step(
            batch_loss,
            module,
            self.optimizer,
            config,
            rate=lambda step: config.optim.lr * factor(step),
            total_steps=self.steps,
            world=self.world,
            say=self.say,
        )

    # the loop

    def fit(self) -> Metrics:
        """Train, evaluate, save; return the final metrics of the validation split.

        Raises:
            RunStopped: stopped by a signal, or too many steps in a row were skipped; the state is saved and
                `resume` continues.
        """
        log = self._open()
        batches = self.loader.stream(self.step)
        profiles = self.profile and self.world.main
        profile = Profile(self.out / "profile", self.step, self.say) if profiles else None
        try:
            with StopRequest() as stop:
                while self.step < self.steps and not self._finished_early:
                    try:
                        self._advance(batches, log, stop, profile)
                        self._between_steps(log, stop)
                    except Interrupted:
                        raise self._stopped(f"stopped by {stop.name}", 128 + stop.number) from None
                    except WorkerError as error:
                        if self.world.size > 1:  # the others wait for this process, and cannot save with it
                            raise
                        raise self._stopped(f"{error}; stopped") from None
            if not self._final:
                self._final = self._evaluated(log)
        finally:
            if profile is not None:
                profile.close()
            log.close()
            self.checkpoints.wait()
        self._finish(self._final)
        return self._final

    def _open(self) -> RunLog:
        config = self.config
        if self.world.main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_config(config, self.out / "config.toml")
            self.data.labels.write_csv(self.out / "labels.csv")
        return RunLog(
            self.out, resume_step=self.step, tensorboard=config.log.tensorboard, active=self.world.main
        )

    def _advance(
        self, batches: Iterator[Batch], log: RunLog, stop: StopRequest, profile: Profile | None
    ) -> None:
        """Run one step, and log it if due."""
        started = time.perf_counter()
        with stop.ends_waiting() if self.world.size == 1 else nullcontext():
            batch = next(batches)
        self.waited += time.perf_counter() - started
        self._note_corrupt(batch, log)
        rate = self._step.rate(self.step)
        self.take(batch)
        if profile is not None:
            profile.step()
        logs = self.step % self.config.log.every == 0 or self.step == self.steps
        report = self._step.read() if logs or self._step.due else None
        self.seconds += time.perf_counter() - started
        if report is not None:
            self._note_skipped(report, log)
        if report is not None and logs:
            self._loss = report.values.pop("loss")
            log.write(
                "train",
                self.step,
                seconds=self.seconds,
                waited=self.waited,  # waiting for data, part of `seconds`
                lr=rate,
                loss=self._loss,
                **report.values,
            )
        self.on_step(self.step, self.steps, self._loss)

    def take(self, batch: Batch) -> None:
        """Run the next step on `batch`; nothing is logged."""
        self._step(batch, self.step)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self.weighting.end_epoch(total)

    def _between_steps(self, log: RunLog, stop: StopRequest) -> None:
        """Evaluate and save a checkpoint if due."""
        last = self.step == self.steps
        if last or self.step % self.config.log.eval_every == 0:
            metrics = self._evaluated(log)
            last = last or self._finished_early
            self._final = metrics if last else {}
        if last or self.step % self.config.log.checkpoint_every == 0:
            self.save()
        if self._stop_agreed(stop):
            raise self._stopped(f"stopped by {stop.name}", 128 + (stop.number or signal.SIGTERM))

    def _stopped(self, why: str, status: int = 1) -> RunStopped:
        """Save the state and return the exception that says so."""
        self.save(wait=True)
        after = f"after step {self.step} of {self.steps}"
        return RunStopped(f"{why} {after}; the state is saved, resume continues", status)

    def _stop_agreed(self, stop: StopRequest) -> bool:
        """Return whether to stop now. Processes must agree; on GPUs they check at logged steps."""
        if self.world.size > 1:
            asked = self.device.type == "cpu" or self.step % self.config.log.every == 0
            return asked and any_rank(stop.requested)
        return stop.requested

    @property
    def _finished_early(self) -> bool:
        patience = self.config.log.patience
        return bool(patience) and self.best.since >= patience

    # what is written down

    def _note_corrupt(self, batch: Batch, log: RunLog) -> None:
        for message in batch.skipped:
            self._skipped_samples += 1
            log.write("corrupt", self.step + 1, message=message)
            self.say(f"step {self.step + 1}: skipped a sample: {message}")

    def _note_skipped(self, report: Report, log: RunLog) -> None:
        for skipped in report.skipped:
            self._skipped_steps += 1
            log.write("skipped", skipped.step + 1, reason=skipped.reason, pairs=skipped.pairs)
            where = "; ".join(f"{task}: {', '.join(names)}" for task, names in skipped.pairs.items())
            self.say(f"step {skipped.step + 1} skipped: {skipped.reason} not finite ({where})")
        if self._step.in_a_row >= self.config.execution.max_bad_steps:
            self.save(wait=True)
            raise RunStopped(
                f"{self._step.in_a_row} steps in a row had a loss or gradient that is not finite "
                f"(execution.max_bad_steps); the state after step {self.step} is saved, "
                f"{log.path} names tasks and samples"
            )

    def _evaluated(self, log: RunLog) -> Metrics:
        model = self._plain()
        metrics = self._scored(model)
        delta, better = self.best.judge(self.step, metrics)
        log.write("eval", self.step, seconds=self.seconds, delta=delta, **self._results(metrics))
        self.on_eval(self.step, self.steps, metrics)
        if better:
            self._keep(model, self.out / "best", self.out / "best" / "metrics.json", metrics)
        if self.config.log.tensorboard and self.config.log.pictures and self.world.main:
            from dmtl.train.pictures import validation_pictures

            log.pictures(self.step, validation_pictures(model, self.data.val, self.config.log.pictures))
        return metrics

    def evaluate(self) -> Metrics:
        """Return metrics of the current weights on the validation split, over all processes."""
        return self._scored(self._plain())

    def _scored(self, model: DiffusionMTL | MultiTaskBaseline) -> Metrics:
        loader = evaluation_loader(self.data, workers=self.config.data.workers)
        chain = isinstance(self.model, DiffusionMTL)
        return score(model, loader, initial=chain, on_sources=self.sources.update, world=self.world)

    @property
    def result(self) -> DiffusionMTL | MultiTaskBaseline:
        """Return the model to evaluate and to save: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.average

    def _plain(self) -> DiffusionMTL | MultiTaskBaseline:
        """Return `result` with the first process's statistics, or a copy with whole parameters in this
        process. All processes take part."""
        distributed.share_buffers(self.result, self.world)
        shards = self.world.size > 1 and self.config.execution.parallel == "fsdp"
        return distributed.full_copy(self.result) if shards else self.result

    def _finish(self, metrics: Metrics) -> None:
        self._keep(self._plain(), self.out / "model", self.out / "metrics.json", metrics)
        barrier()

    def _keep(
        self, model: DiffusionMTL | MultiTaskBaseline, folder: Path, summary: Path, metrics: Metrics
    ) -> None:
        """Save the model's weights in `folder`, its metrics in `summary`."""
        if not self.world.main:
            return
        model.save_pretrained(folder)
        run = {
            "step": self.step,
            "seconds": self.seconds,
            "skipped_steps": self._skipped_steps,
            "skipped_samples": self._skipped_samples,
            "best": {"step": self.best.step, "delta": self.best.delta},
        }
        write_json(summary, run | self._results(metrics))

    def _results(self, metrics: Metrics) -> dict:
        """Return metrics, main metrics and metrics by source, as the log and the run's summary store them."""
        return {
            "metrics": metrics,
            "primary": primary_metrics(metrics, self.model.tasks),
            "sources": self.sources,
        }

    # checkpoints

    def save(self, wait: bool = False) -> None:
        """Save a checkpoint that resumes the run exactly, in the background unless `wait`."""
        distributed.share_buffers(self.model, self.world)
        self.weighting.merge(total)

        def whole(tensors: dict) -> dict | None:
            return distributed.full_tensors(tensors, keep=self.world.main)

        state = {
            "step": self.step,
            "seconds": [self.seconds, self.waited],
            "skipped": [self._skipped_steps, self._skipped_samples],
            "corrupt": gather(self.loader.corrupt),
            "config": json.dumps(identity(self.config), sort_keys=True),
            "data": json.dumps(self.data.definition()),
            "model": whole(self.model.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "weighting": whole(self.weighting.state_dict()),
            "objectives": whole(self.objectives.state_dict()),
            "ema": None if self.ema is None else whole(self.ema.average.state_dict()),
            "steps": self._step.state_dict(),
            "best": self.best.state_dict(),
            "final": self._final,
            "sources": self.sources,
            "rng": torch.get_rng_state(),
        }
        if self.world.main:
            self.checkpoints.save(self.step, state, wait=wait)

    def _restore(self, state: dict) -> None:
        folder = self.checkpoints.folder
        changed = what_changed(json.loads(state["config"]), self.config) or meaning_changed(state, self.data)
        if changed:
            raise CheckpointError(
                f"{folder}: belongs to another configuration: {changed}. "
                "Resume with the earlier values, or train into another folder"
            )
        began = self.out / "labels.csv"
        if began.is_file() and LabelMatrix.read_csv(began) != self.data.labels:
            raise CheckpointError(f"{began}: the run began with other labels than data.labels gives now")
        for module, name in (
            (self.model, "model"),
            (self.weighting, "weighting"),
            (self.objectives, "objectives"),
            (None if self.ema is None else self.ema.average, "ema"),
        ):
            if module is not None:
                load_state(module, distributed.sharded(state[name], module.state_dict()), str(folder))
        distributed.restore_optimizer(self.optimizer, state["optimizer"])
        self._step.load_state_dict(state["steps"])
        self.best.load_state_dict(state["best"])
        torch.set_rng_state(state["rng"])
        self.step, (self.seconds, self.waited) = state["step"], state["seconds"]
        (self._skipped_steps, self._skipped_samples), self._final = state["skipped"], state["final"]
        self.sources.update(state.get("sources", {}))
        if self.world.rank < len(state["corrupt"]):
            self.loader.corrupt.update(state["corrupt"][self.world.rank])
