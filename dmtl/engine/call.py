"""One call of the engine: its arguments with all defaults, and the noise that it draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmtl.diffusion import CounterNoise, NoiseSource
from dmtl.errors import ConfigError


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the engine, with defaults filled in."""

    wanted: tuple[str, ...]
    size: tuple[int, int]
    downscale: int
    steps: int
    sampler: tuple[str, float | None]  # name and eta
    tolerance: float | None
    noises: Any  # list[NoiseSource]; in the key of a graph, the length of that list
    how: tuple = ()  # threads, instruction set and backends of a CPU
    initial: bool = False


def capturable(call: Call) -> bool:
    """Return whether a call can be captured: its steps are fixed and its noise comes from `CounterNoise`."""
    return call.tolerance is None and all(type(noise) is CounterNoise for noise in call.noises)


def draws_of(noise: NoiseSource, samples: int) -> list[NoiseSource]:
    """Return the sources of several noise samples; the first one is `noise` itself."""
    if samples == 1:
        return [noise]
    if not isinstance(noise, CounterNoise):
        raise ConfigError(f"Engine: samples must be 1 if noise is a {type(noise).__name__}, got {samples}")
    return [noise.another(number) for number in range(samples)]
