"""MTDNet: the diffusion process on the initial signal of every task, and its denoiser (arXiv 2403.15389).

Feature Diffusion adds noise to the features of the preliminary decoders and computes predictions from the
denoised features. Prediction Diffusion adds noise to the preliminary logits and denoises them to the final
logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmtl.diffusion import NoiseSource, Pairs, Plan, Schedule, make_sampler, noising, reverse_chain
from dmtl.models.config import ModelConfig
from dmtl.models.denoiser import Condition, Denoiser, Layers
from dmtl.models.initialisation import start_as_identity, start_without_correction
from dmtl.nn.precision import Weights, lower, lowered, using


class MTDNet(nn.Module):
    """Denoise initial features or logits at 1/8 resolution.

    Args:
        config: configuration of the model.
        channels: task -> logit channels C_T, in the order in which the condition concatenates the tasks.
    """

    def __init__(self, config: ModelConfig, channels: Mapping[str, int]):
        super().__init__()
        self.config = config
        self.schedule = schedule_of(config)
        features = config.diffusion == "feature"
        self.condition = Condition(sum(channels.values()), config.width, config.token_reduction)
        self.denoiser = Denoiser(config, dict.fromkeys(channels, config.width) if features else channels)
        self.heads = nn.ModuleDict(
            {t: nn.Conv2d(config.width, c, 1) for t, c in channels.items()} if features else {}
        )
        if config.chain_init == "identity":
            start_as_identity(self.condition, self.denoiser)
        if config.residual:
            start_without_correction(self.denoiser, self.heads)
        self.recompute = False
        """Whether training recomputes the denoiser's activations instead of keeping them."""
        self._plans: dict[tuple, Plan] = {}

    def plan(
        self,
        device: torch.device,
        steps: int | None = None,
        eta: float | None = None,
        sampler: str | None = None,
    ) -> Plan:
        """Return the coefficients of the chain on `device`; they are cached.

        `DiffusionMTL.forward` describes the other arguments.
        """
        key = (steps, *self.config.sampler_for(sampler, eta), str(device))
        if torch.compiler.is_compiling():  # constants of the graph
            return self._plans.get(key) or self._new_plan(*key[:3], device)
        if key not in self._plans:
            with torch.inference_mode(False):  # training may later use tensors that an evaluation computed
                self._plans[key] = self._new_plan(*key[:3], device)
        return self._plans[key]

    def _new_plan(self, steps: int | None, sampler: str, eta: float | None, device: torch.device) -> Plan:
        plan = self.schedule.plan(steps, make_sampler(sampler, eta)).to(device)
        if "noise" not in self.config.without:
            return plan
        none = torch.zeros_like(plan.sigma)
        return replace(plan, sqrt_one_minus_abar=none, sigma=none)

    def condition_input(self, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the input of the condition: the initial logits, or zeros in a model without condition."""
        if "condition" in self.config.without:
            return {t: torch.zeros_like(m) for t, m in initial.items()}
        return {t: m.detach() if self.config.detach_condition else m for t, m in initial.items()}

    def forward(
        self,
        features: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        rows: Mapping[str, Tensor | None],
        plan: Plan,
        noise: NoiseSource,
        trace: bool = False,
    ) -> list[Denoised]:
        """Run the chain for the tasks in `rows`.

        Args:
            features: preliminary features of every task, [B, C, h, w].
            initial: preliminary logits of every task, [B, C_T, h, w].
            rows: task -> rows of the batch [n]; None: all rows.
            plan: coefficients from `plan`.
            noise: source of the noise.
            trace: return the state after every step.

        Returns:
            A list with the state after the last step or, with `trace`, after every step, the noisiest first.
        """
        config = self.config
        tokens_BNC, query_BNC = self.condition(self.condition_input(initial), self.denoiser.blocks[0])
        pairs = Pairs.of(rows, tokens_BNC.shape[0])
        of_features = config.diffusion == "feature"
        packed = (
            [group.pack(initial) for group in pairs.single()] if config.residual or not of_features else []
        )
        start = [pairs.pack(features)] if of_features else packed
        if config.detach_signal:
            start, packed = ([x.detach() for x in signals] for signals in (start, packed))
        fold = _worth_folding(start, plan, pairs, config.width)
        kinds = (
            nn.Conv2d,
            nn.Linear,
            nn.LayerNorm,
        )  # LayerNorm: operators of the cross blocks cast theirs, too
        weights = lower(self.denoiser, len(plan.levels), kinds)
        run = Run(
            pairs=pairs,
            tokens=pairs.repeat(tokens_BNC),
            query=pairs.repeat(query_BNC),
            layers=None if weights[0] else self.denoiser.layers(pairs.tasks, fold=fold, pack=fold),
            weights=weights,
            plan=plan,
            noise=noise,
            anchors=dict(zip(pairs.tasks, packed, strict=True)) if config.residual else None,
        )
        return list(self.chain(start, run, every=trace))

    def chain(self, start: list[Tensor], run: Run, every: bool) -> Iterator[Denoised]:
        """Add noise to the clean signals and denoise them; yield the state after every step, or only the
        last.

        Args:
            start: the clean signals: one packed tensor [R, C, h, w], or one tensor for each task. The list is
                emptied, so that their memory is freed as soon as noise was added.
            run: everything else that the chain needs.
            every: yield the state after every step, not only after the last.
        """
        config, pairs = self.config, run.pairs
        groups = [pairs] if len(start) == 1 else pairs.single()
        draws = [run.noise.draws(group, x) for group, x in zip(groups, start, strict=True)]
        scale = config.signal_scale
        to_chain = (lambda x: x) if scale == 1 else (lambda x: scale * x)
        weights = iter(run.weights)

        def denoise(noisy: list[Tensor], level: float) -> list[Tensor]:
            arguments = (next(weights, []), run, noisy, level)
            if self.recompute and torch.is_grad_enabled():
                clean = checkpoint(self._denoised, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                clean = self._denoised(*arguments)
            if run.anchors is not None and config.diffusion == "prediction":
                clean = [anchor + x for anchor, x in zip(run.anchors.values(), clean, strict=True)]
            return clean

        noisy = noising([to_chain(x) for x in start], run.plan, draws)
        start.clear()
        for estimate in reverse_chain(denoise, noisy, run.plan, draws, to_chain, every):
            yield Denoised(pairs, estimate, run.anchors)

    def _denoised(self, weights: Weights, run: Run, noisy: list[Tensor], level: float) -> list[Tensor]:
        """Run the denoiser, with the weights of this step if each step has its own copy."""
        with using(weights):
            layers = run.layers or self.denoiser.layers(run.pairs.tasks)
            return self.denoiser(run.tokens, run.query, noisy, run.pairs, level, layers)

    def logits(self, denoised: Denoised) -> dict[str, Tensor]:
        """Compute logits from a denoised state: task -> [n, C_T, h, w]."""
        signals = denoised.by_task()
        if self.config.diffusion == "prediction":
            return signals
        with lowered(self.heads):
            logits = {task: self.heads[task](x) for task, x in signals.items()}
        anchors = denoised.anchors
        return logits if anchors is None else {task: anchors[task] + x for task, x in logits.items()}


@dataclass(frozen=True)
class Run:
    """What the chain needs besides its signals.

    Attributes:
        pairs: the (sample, task) pairs of the rows.
        tokens: condition tokens of every row.
        query: the first cross block's query of every row.
        layers: layers of the denoiser; None if each step has its own copy of the weights.
        plan: the steps.
        noise: source of the noise.
        anchors: the initial logits to which a residual model adds its corrections; otherwise None.
        weights: the weights of each step (`nn.precision.lower`), if each step has its own copy.
    """

    pairs: Pairs
    tokens: Tensor
    query: Tensor
    layers: Layers | None
    plan: Plan
    noise: NoiseSource
    anchors: dict[str, Tensor] | None = None
    weights: Sequence[Weights] = ()


@dataclass(frozen=True)
class Denoised:
    """The state of the chain after a step.

    Attributes:
        pairs: the (sample, task) pairs of the rows.
        signals: one packed tensor, or one for each task.
        anchors: the initial logits of a residual model; otherwise None.
    """

    pairs: Pairs
    signals: list[Tensor]
    anchors: dict[str, Tensor] | None

    def by_task(self) -> dict[str, Tensor]:
        """Return task -> its signal [n, C, h, w], as views."""
        if len(self.signals) == 1:
            return self.pairs.split(self.signals[0])
        return dict(zip(self.pairs.tasks, self.signals, strict=True))


def _worth_folding(start: list[Tensor], plan: Plan, pairs: Pairs, width: int) -> bool:
    """Return whether folding the 1x1 into the 3x3 after it saves time.

    It costs 9 C^3 multiply-adds per task and saves C^2 for every pixel, row and step. It is only for
    inference: under autograd and in compiled graphs the layers stay separate.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    pixels = sum(x.shape[0] * x.shape[-2] * x.shape[-1] for x in start) * len(plan.levels)
    return pixels >= 9 * width * len(pairs.tasks)


def schedule_of(config: ModelConfig) -> Schedule:
    """Build the noise schedule of a configuration."""
    if config.betas is not None:
        return Schedule(np.asarray(config.betas))
    return Schedule.from_range(config.steps, config.beta_start, config.beta_end)
