"""Numbers as people read them: rounded, with separated thousands, units, and words for what is missing; and
lists that stay short."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"


def decimals(value: float) -> int:
    """Return the digits after the point that show four significant ones, at most four."""
    return min(4, max(0, 3 - math.floor(math.log10(abs(value))))) if value and math.isfinite(value) else 1


def fixed(value: float | None, digits: int | None = None, sign: bool = False) -> str:
    """Return a metric with `digits` after the point (default: `decimals`) and a true minus sign; "n/a" for
    None, NaN and infinities.

    Args:
        sign: write a plus sign, too.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    digits = decimals(value) if digits is None else digits
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def number(value: float, digits: int = 4) -> str:
    """Return an amount with about `digits` significant digits, thousands separated and no zeros at its end;
    the exponent of very large and very small ones stays."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "n/a"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.3g}"
    text = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """Return "12.3 %" for 0.123; "< 0.1 %" for more than nothing that would be rounded to it."""
    if not share:
        return "0 %"
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def duration(seconds: float) -> str:
    """Return "35 us", "12 ms", "4.8 s", "3 min 12 s" or "2 h 05 min"."""
    if not seconds:
        return "0 s"
    # Limits are where rounding to three digits reaches the next unit.
    for limit, factor, unit in ((0.9995e-3, 1e6, "us"), (0.9995, 1e3, "ms"), (59.95, 1.0, "s")):
        if seconds < limit:
            return f"{factor * seconds:.3g} {unit}"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def shortened(names: Iterable[object], most: int = 8) -> str:
    """Return "a, b, c", of more than `most` names only the first ones and ", ..."."""
    first = list(itertools.islice(map(str, names), most + 1))
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "")


def mebibytes(size: float) -> str:
    """Return bytes as "1,234 MiB"."""
    return f"{size / 2**20:,.0f} MiB"


def plural(count: int, noun: str) -> str:
    """Return "1 seed" or "2 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
