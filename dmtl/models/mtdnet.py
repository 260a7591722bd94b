"""MTDNet: the diffusion process on every task's initial signal, and its denoiser (DiffusionMTL, arXiv
2403.15389).

Feature Diffusion noises the preliminary decoder's feature and computes the prediction from the denoised
feature. Prediction Diffusion noises the preliminary logits and denoises them into the final logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmtl.diffusion import NoiseSource, Pairs, Plan, Schedule, make_sampler, noising, reverse_chain
from dmtl.models.config import ModelConfig
from dmtl.models.denoiser import Condition, Denoiser, Layers
from dmtl.models.initialisation import start_as_identity, start_without_correction


class MTDNet(nn.Module):
    """Denoise initial features or logits; return them after every step, at 1/8 resolution.

    Args:
        channels: task -> logit channels C_T, the tasks in the order in which the condition concatenates them.
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
        """Return the chain's coefficients on `device`, cached; arguments as in `DiffusionMTL.forward`."""
        key = (steps, *self.config.sampler_for(sampler, eta), str(device))
        if torch.compiler.is_compiling():  # constants of the graph
            return self._plans.get(key) or self._new_plan(*key[:3], device)
        if key not in self._plans:
            with torch.inference_mode(False):  # training may use tensors first computed in an evaluation
                self._plans[key] = self._new_plan(*key[:3], device)
        return self._plans[key]

    def _new_plan(self, steps: int | None, sampler: str, eta: float | None, device: torch.device) -> Plan:
        plan = self.schedule.plan(steps, make_sampler(sampler, eta)).to(device)
        if "noise" not in self.config.without:
            return plan
        none = torch.zeros_like(plan.sigma)
        return replace(plan, sqrt_one_minus_abar=none, sigma=none)

    def condition_input(self, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the input of the condition: the initial logits, or zeros in a model without it."""
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
        """Denoise the tasks in `rows` (task -> batch rows [n], None: all rows).

        Args:
            features: every task's preliminary feature [B, C, h, w].
            initial: every task's preliminary logits [B, C_T, h, w].

        Returns:
            The state after the last step; with `trace` after every step, noisiest first.
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
        run = Run(
            pairs=pairs,
            tokens=pairs.repeat(tokens_BNC),
            query=pairs.repeat(query_BNC),
            layers=self.denoiser.layers(pairs.tasks, fold=fold, pack=fold),
            plan=plan,
            noise=noise,
            anchors=dict(zip(pairs.tasks, packed, strict=True)) if config.residual else None,
        )
        return list(self.chain(start, run, every=trace))

    def chain(self, start: list[Tensor], run: Run, every: bool) -> Iterator[Denoised]:
        """Noise the clean signals and denoise them; yield the state after every step, or only the last.

        Args:
            start: one packed tensor [R, C, h, w], or one for each task. The list is emptied, so its memory is
            freed as soon as the signals are noised.
        """
        config, pairs = self.config, run.pairs
        groups = [pairs] if len(start) == 1 else pairs.single()
        draws = [run.noise.draws(group, x) for group, x in zip(groups, start, strict=True)]
        scale = config.signal_scale
        to_chain = (lambda x: x) if scale == 1 else (lambda x: scale * x)

        def denoise(noisy: list[Tensor], level: float) -> list[Tensor]:
            arguments = (run.tokens, run.query, noisy, pairs, level, run.layers)
            if self.recompute and torch.is_grad_enabled():
                clean = checkpoint(self.denoiser, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                clean = self.denoiser(*arguments)
            if run.anchors is not None and config.diffusion == "prediction":
                clean = [anchor + x for anchor, x in zip(run.anchors.values(), clean, strict=True)]
            return clean

        noisy = noising([to_chain(x) for x in start], run.plan, draws)
        start.clear()
        for estimate in reverse_chain(denoise, noisy, run.plan, draws, to_chain, every):
            yield Denoised(pairs, estimate, run.anchors)

    def logits(self, denoised: Denoised) -> dict[str, Tensor]:
        """Compute logits from a denoised state: task -> [n, C_T, h, w]."""
        signals = denoised.by_task()
        if self.config.diffusion == "prediction":
            return signals
        logits = {task: self.heads[task](x) for task, x in signals.items()}
        anchors = denoised.anchors
        return logits if anchors is None else {task: anchors[task] + x for task, x in logits.items()}


@dataclass(frozen=True)
class Run:
    """What the chain needs besides its signals: the pairs of its rows, the condition's tokens and first query
    for every row, the denoiser's layers, the steps, the noise and, in a residual model, the initial logits
    to add corrections to."""

    pairs: Pairs
    tokens: Tensor
    query: Tensor
    layers: Layers
    plan: Plan
    noise: NoiseSource
    anchors: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Denoised:
    """The chain's state after a step: the pairs, their signals (one packed tensor, or one for each task), and
    a residual model's anchors."""

    pairs: Pairs
    signals: list[Tensor]
    anchors: dict[str, Tensor] | None

    def by_task(self) -> dict[str, Tensor]:
        """Return task -> its signal [n, C, h, w], as views."""
        if len(self.signals) == 1:
            return self.pairs.split(self.signals[0])
        return dict(zip(self.pairs.tasks, self.signals, strict=True))


def _worth_folding(start: list[Tensor], plan: Plan, pairs: Pairs, width: int) -> bool:
    """Whether folding pays: a 1x1 into a 3x3 costs 9 C^3 multiply-adds a task and saves C^2 for every pixel,
    row and step. Only for inference (under autograd and in compiled graphs the plain layers are kept)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    pixels = sum(x.shape[0] * x.shape[-2] * x.shape[-1] for x in start) * len(plan.levels)
    return pixels >= 9 * width * len(pairs.tasks)


def schedule_of(config: ModelConfig) -> Schedule:
    """Build the noise schedule of a configuration."""
    if config.betas is not None:
        return Schedule(np.asarray(config.betas))
    return Schedule.from_range(config.steps, config.beta_start, config.beta_end)
