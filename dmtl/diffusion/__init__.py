"""The diffusion chain: schedule (fp64 tables), samplers, counter-based noise, and the unrolled chain."""

from dmtl.diffusion.chain import noising, reverse_chain
from dmtl.diffusion.noise import ArrayNoise, CounterNoise, NoiseSource
from dmtl.diffusion.pairs import Pairs
from dmtl.diffusion.samplers import SAMPLERS, Coefficients, make_sampler
from dmtl.diffusion.schedule import Plan, Schedule

__all__ = [
    "SAMPLERS",
    "ArrayNoise",
    "Coefficients",
    "CounterNoise",
    "NoiseSource",
    "Pairs",
    "Plan",
    "Schedule",
    "make_sampler",
    "noising",
    "reverse_chain",
]
