"""The diffusion chain: schedule (fp64 tables), noise (counter-based source), chain (the unrolled reverse
process)."""

from dmtl.diffusion.chain import noising, reverse_chain
from dmtl.diffusion.noise import ArrayNoise, CounterNoise, NoiseSource
from dmtl.diffusion.pairs import Pairs
from dmtl.diffusion.schedule import Plan, Schedule

__all__ = [
    "ArrayNoise",
    "CounterNoise",
    "NoiseSource",
    "Pairs",
    "Plan",
    "Schedule",
    "noising",
    "reverse_chain",
]
