"""Values of a metric over several runs: mean and sample standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from dmtl.text import decimals, fixed

Name = TypeVar("Name")
Value = float | tuple[float, float]
"""The result of one run, or (mean, standard deviation) over several."""


def value_of(values: Sequence[float]) -> Value:
    """Return mean and sample standard deviation, or the number itself if there is only one.

    NaN if one of the numbers is not finite.
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    return values[0] if len(values) == 1 else (statistics.fmean(values), statistics.stdev(values))


def mean_of(value: Value) -> float:
    """Return the mean, or the result if there is only one run."""
    return float(value[0] if isinstance(value, (tuple, list)) else value)


def spread_of(value: Value) -> float | None:
    """Return the standard deviation, or None for one run."""
    return float(value[1]) if isinstance(value, (tuple, list)) else None


def texts_of(value: Value, digits: int | None = None, sign: bool = False) -> tuple[str, str]:
    """Return mean and spread as text with the same number of digits; the spread of one run is ""."""
    mean, spread = mean_of(value), spread_of(value)
    digits = decimals(mean) if digits is None else digits
    return fixed(mean, digits, sign), "" if spread is None else fixed(spread, digits)


def text_of(value: Value, digits: int | None = None, sign: bool = False) -> str:
    """Return "3.64 ± 0.12", or "3.64" for one run."""
    return " ± ".join(text for text in texts_of(value, digits, sign) if text)


def numbers_of(value: Value) -> dict[str, float | None]:
    """Return mean and spread for a JSON file; None replaces NaN, which JSON lacks."""
    mean = mean_of(value)
    return {"mean": mean if math.isfinite(mean) else None, "spread": spread_of(value)}


def tone_of(value: Value) -> str:
    """Return the colour of a Delta_MTL: "good", "bad", or "even" if it is within its spread of zero."""
    mean = mean_of(value)
    if not math.isfinite(mean) or abs(mean) <= (spread_of(value) or 0.0) or round(mean, 2) == 0:
        return "even"
    return "good" if mean > 0 else "bad"


def best_of(values: Mapping[Name, Value], higher_is_better: bool) -> list[Name]:
    """Return the names with the best mean; [] if there is nothing to compare, or all are equal."""
    means = {name: mean_of(value) for name, value in values.items()}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if len(set(means.values())) < 2:
        return []
    top = (max if higher_is_better else min)(means.values())
    return [name for name, mean in means.items() if mean == top]
