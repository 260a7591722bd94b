"""The diffusion chain: schedule (fp64 tables), samplers, noise (counter-based source), chain (the unrolled reverse
process)."""

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
