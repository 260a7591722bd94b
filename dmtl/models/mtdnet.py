"""MTDNet: the diffusion process on every task's initial signal, and its denoiser (DiffusionMTL, arXiv
2403.15389).

Feature Diffusion noises the preliminary decoder's feature and reads the prediction off the denoised
feature. Prediction Diffusion noises the preliminary logits and denoises them into the final logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dmtl.diffusion import NoiseSource, Plan, Schedule, noising, reverse_chain
from dmtl.models.config import ModelConfig
from dmtl.models.denoiser import Condition, Denoiser
from dmtl.models.initialisation import start_as_identity, start_without_correction


class MTDNet(nn.Module):
    """Initial features and logits -> the logits after every denoising step, at 1/8 resolution.

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
            start_as_identity(self)
        if config.residual:
            start_without_correction(self)
        self._plans: dict[tuple, Plan] = {}

    def plan(self, steps: int | None, eta: float | None, device: torch.device) -> Plan:
        """The chain's coefficients on `device`, computed once."""
        eta = self.config.eta if eta is None else eta
        if torch.compiler.is_compiling():  # constants of the graph
            return self._plans.get((steps, eta, str(device))) or self.schedule.plan(steps, eta).to(device)
        key = (steps, eta, str(device))
        if key not in self._plans:
            with torch.inference_mode(False):  # training may use what an evaluation computed first
                self._plans[key] = self.schedule.plan(steps, eta).to(device)
        return self._plans[key]

    def forward(
        self,
        features: Mapping[str, Tensor],
        initial: Mapping[str, Tensor],
        rows: Mapping[str, Tensor | None],
        plan: Plan,
        noise: NoiseSource,
    ) -> list[dict[str, Tensor]]:
        """Denoises the tasks in `rows` (task -> batch rows [n], None: all rows).

        Args:
            features, initial: every task's preliminary feature [B, C, h, w] and logits [B, C_T, h, w].

        Returns:
            For every step, noisiest first, {task: logits [n, C_T, h, w]}.
        """
        detached = {t: m.detach() if self.config.detach_condition else m for t, m in initial.items()}
        condition = self.condition(detached)
        condition = torch.cat([condition if r is None else condition[r] for r in rows.values()])
        taken = {t: initial[t] if r is None else initial[t][r] for t, r in rows.items()}
        if self.config.detach_signal:
            taken = {t: x.detach() for t, x in taken.items()}
        start = taken
        if self.config.diffusion == "feature":
            start = {t: features[t] if r is None else features[t][r] for t, r in rows.items()}
            if self.config.detach_signal:
                start = {t: x.detach() for t, x in start.items()}
        scale = self.config.signal_scale
        to_chain = (lambda x: x) if scale == 1 else (lambda x: scale * x)
        noisy = noising({t: to_chain(x) for t, x in start.items()}, rows, plan, noise)
        estimates = reverse_chain(
            lambda x, level: self._estimate(condition, x, level, taken), noisy, rows, plan, noise, to_chain
        )
        return [self._logits(estimate, taken) for estimate in estimates]

    def _estimate(
        self, condition: Tensor, noisy: Mapping[str, Tensor], level: float, initial: Mapping[str, Tensor]
    ):
        clean = self.denoiser(condition, noisy, level)
        if self.config.residual and self.config.diffusion == "prediction":
            clean = {task: initial[task] + x for task, x in clean.items()}
        return clean

    def _logits(self, estimate: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.config.diffusion == "prediction":
            return dict(estimate)
        logits = {task: self.heads[task](x) for task, x in estimate.items()}
        return {task: initial[task] + x for task, x in logits.items()} if self.config.residual else logits


def schedule_of(config: ModelConfig) -> Schedule:
    """The noise schedule a configuration asks for."""
    if config.betas is not None:
        return Schedule(config.betas)
    return Schedule.from_range(config.steps, config.beta_start, config.beta_end)
