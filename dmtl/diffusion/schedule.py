"""Noise schedule: the levels of a chain and the tables of its steps, computed in float64.

Symbols as in DDPM (arXiv 2006.11239): beta_t, abar_t = prod_{s<=t} (1 - beta_s). The published schedule is
linear in sqrt(beta). `dmtl.diffusion.samplers` defines the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dmtl.diffusion.samplers import Sampler, ancestral


@dataclass(frozen=True)
class Plan:
    """The K steps of one run of the chain; index K-1 is the noisiest level and is visited first.

    levels: K step numbers for the time embedding (fractional if the chain has more steps than it was trained
    with).
    sqrt_abar, sqrt_one_minus_abar, coef1, coef2, sigma: float32 tensors [K].
    mix: for each step the weights of the newest estimates, see `dmtl.diffusion.samplers`.
    """

    levels: tuple[float, ...]
    sqrt_abar: Tensor
    sqrt_one_minus_abar: Tensor
    coef1: Tensor
    coef2: Tensor
    sigma: Tensor
    mix: tuple[tuple[float, ...], ...]
    _indices: dict[tuple[int, int], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def index(self, i: int, rows: int) -> Tensor:
        """Return int64 [rows], i in every row: where the operators look in the tables. Cached."""
        if torch.compiler.is_compiling():  # a constant of the graph
            return torch.full((rows,), i, dtype=torch.int64, device=self.sigma.device)
        if (i, rows) not in self._indices:
            with torch.inference_mode(False):  # training may use what was first computed in an evaluation
                device = self.sigma.device
                self._indices[i, rows] = torch.full((rows,), i, dtype=torch.int64, device=device)
        return self._indices[i, rows]

    @property
    def history(self) -> int:
        """Return how many earlier estimates a step reads at most."""
        return max(len(weights) for weights in self.mix) - 1

    def to(self, device: torch.device) -> Plan:
        """Return the same plan with its tables on `device`."""
        return replace(
            self,
            sqrt_abar=self.sqrt_abar.to(device),
            sqrt_one_minus_abar=self.sqrt_one_minus_abar.to(device),
            coef1=self.coef1.to(device),
            coef2=self.coef2.to(device),
            sigma=self.sigma.to(device),
        )


class Schedule:
    """Variance schedule over S levels.

    Args:
        betas: S values in (0, 1), so abar decreases strictly.
    """

    def __init__(self, betas: np.ndarray):
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) == 0 or not np.all((betas > 0) & (betas < 1)):
            raise ValueError(f"Schedule: betas must be a non-empty vector of values in (0, 1), got {betas!r}")
        self.betas = betas
        self.abar = np.cumprod(1.0 - betas)
        self._log_abar = tuple(np.log(self.abar).tolist())

    @classmethod
    def from_range(cls, steps: int, beta_start: float = 1e-3, beta_end: float = 1e-2) -> Schedule:
        """Make S betas whose square roots are equally spaced from sqrt(beta_start) to sqrt(beta_end)."""
        if steps < 1:
            raise ValueError(f"Schedule: steps must be at least 1, got {steps}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"Schedule: betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start}, {beta_end}"
            )
        return cls(np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2)

    @property
    def steps(self) -> int:
        """Return S, the number of levels the chain was defined with."""
        return len(self.betas)

    def plan(self, steps: int | None = None, sampler: Sampler = ancestral) -> Plan:
        """Return coefficients for a chain of `steps` steps (default S) from the noisiest level.

        Fewer steps than S visit equally spaced levels (rounded); more than S visit fractional ones, where
        log abar is interpolated linearly. Either way the first level is S - 1, the level at which the
        signal is noised.
        """
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"plan: steps must be at least 1, got {steps}")
        top = self.steps - 1
        levels = [top * i / (steps - 1) for i in range(steps)] if steps > 1 else [float(top)]
        if steps <= self.steps:
            levels = [float(round(level)) for level in levels]
        abar = [self._abar_at(level) for level in levels]
        coef1, coef2, sigma, mix = zip(*sampler(abar), strict=True)
        if len(mix) != steps or any(not 1 <= len(weights) <= steps - i for i, weights in enumerate(mix)):
            raise ValueError(
                f"plan: the sampler must return {steps} steps that mix only existing estimates, got {mix}"
            )
        noisy = [math.sqrt(level) for level in abar], [math.sqrt(1 - level) for level in abar]
        sqrt_abar, sqrt_rest, by_estimate, by_x, by_noise = [
            torch.tensor(table, dtype=torch.float32) for table in (*noisy, coef1, coef2, sigma)
        ]
        return Plan(tuple(levels), sqrt_abar, sqrt_rest, by_estimate, by_x, by_noise, mix)

    def _abar_at(self, level: float) -> float:
        """Return abar at a level that may be fractional; log abar is linear in between."""
        low = int(level)
        share = level - low
        return math.exp(
            self._log_abar[low] + (share * (self._log_abar[low + 1] - self._log_abar[low]) if share else 0.0)
        )
