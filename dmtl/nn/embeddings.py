"""The time embedding of the denoiser: sinusoids of the step, then two linear layers (DDPM, arXiv
2006.11239)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256  # sinusoids of a step


def sinusoidal_embedding(t_B: Tensor, dim: int) -> Tensor:
    """Return [cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (dim/2)), float32 [B, dim].

    t [B] are the steps, which may be fractional.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=t_B.device) * (-math.log(10_000) / half)
    )
    angles = t_B.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Embed steps t [B] as vectors [B, width]."""

    def __init__(self, width: int):
        super().__init__()
        self._sinusoids: dict[tuple[float, torch.device], Tensor] = {}
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def weight(self) -> Tensor:
        """Return the weight of the first layer, for the dtype and device of the module."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return first.weight

    def forward(self, t_B: Tensor) -> Tensor:
        return self._embedded(sinusoidal_embedding(t_B, FREQUENCIES))

    def of_level(self, level: float) -> Tensor:
        """Return the vector [width] of one step; its sinusoids are cached."""
        key = (level, self.weight.device)
        sinusoid = self._sinusoids.get(key)
        if sinusoid is None:
            with torch.inference_mode(False):  # training may later use what an evaluation computed
                t_1 = torch.full((1,), level, device=self.weight.device)
                sinusoid = sinusoidal_embedding(t_1, FREQUENCIES)
            if not torch.compiler.is_compiling():  # in a compiled graph it is a constant
                self._sinusoids[key] = sinusoid
        return self._embedded(sinusoid)[0]

    def _embedded(self, sinusoids: Tensor) -> Tensor:
        return self.mlp(sinusoids.to(self.weight.dtype))
